import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { probe, provenEndpoint } from "../../src/runtime/process/probe.js";
import { eventually } from "../fixtures/eventually.js";
import { expectConsistent, FaultFleet, fake, faultFleet, lateServers } from "../fixtures/fleets/fault-fleet.js";
import { FAST_HEALTH, type Serving, serve } from "../fixtures/fleets/serve.js";
import { openLibrary } from "../fixtures/fleets/turns.js";
import { isRunning } from "../fixtures/processes.js";
import { unused } from "../fixtures/sessions/unused.js";
import { Stopwatch } from "../fixtures/stopwatch.js";

/** Resolves with the PID when a process other than `pid` is the user's server and answers an authenticated ping. */
async function healthyAgain(fleet: FaultFleet, user: string, pid: number, withinMs = 20_000): Promise<number> {
  return await eventually(
    `${user}'s server`,
    async () => {
      const server = await fleet.record(user);
      if (server.state !== "ready" || server.process === null || server.process.pid === pid) return null;
      const { pid: now } = server.process;
      return await probe(provenEndpoint(server), AbortSignal.timeout(2_000)).then(
        () => now,
        () => null, // not yet
      );
    },
    withinMs,
  );
}

async function pidOf(fleet: FaultFleet, user: string): Promise<number> {
  const pid = (await fleet.record(user)).process?.pid;
  if (pid === undefined) throw new Error(`${user}'s server does not run`);
  return pid;
}

/** The times at which `serve` began to start this user's server, in milliseconds since the epoch. */
async function startsOf(fleet: FaultFleet, user: string, serving: Serving): Promise<number[]> {
  const { id } = await fleet.record(user);
  return serving
    .log()
    .filter(({ msg }) => msg === `starting server ${id}`)
    .map(({ time }) => Date.parse(String(time)));
}

describe("a serve with the default settings", () => {
  const fleet = new FaultFleet();
  let serving: Serving;
  beforeAll(async () => {
    serving = await serve(fleet);
  });
  afterAll(() => fleet.end());

  /** Makes a user with a server that serve watches, and runs one turn in a new session on that server. */
  async function watched(name: string) {
    const user = unused(name);
    const server = await fleet.spawn(user);
    const library = await openLibrary(fleet);
    const session = await library.sessions.create({ user, sessionId: unused("s") });
    await library.sessions.send(session, "hi");
    await eventually("the monitor", () => serving.log().some(({ serverPid }) => serverPid === server.pid));
    return { user, server, library, session, pid: server.pid ?? 0 };
  }

  it("serve makes a crashed server healthy within 3 s, with the same home, port and sessions", async () => {
    const other = await fleet.spawn(unused("bob"));
    const { user, server, library, session, pid: before } = await watched("alice");
    const crashes = await serving.metric("server_restarts_total", { reason: "crash" });
    using took = new Stopwatch();
    process.kill(before, "SIGKILL");
    const pid = await healthyAgain(fleet, user, before);
    const ms = took.ms;
    console.log(`healthy ${Math.round(ms)} ms after the crash`);
    expect(ms).toBeLessThan(3_000);
    expect(await fleet.server(user)).toMatchObject({
      state: "ready",
      pid,
      port: server.port,
      home: server.home,
      crashes: 1,
      failure: null,
    });
    expect(await fleet.server(other.user ?? "")).toMatchObject({ state: "ready", pid: other.pid });
    expect(await library.sessions.send(session, "again")).toMatchObject({ text: "[turn 2] again" });
    expect(await fleet.json(["send", session.sessionId, "and again", "--user", user])).toMatchObject({
      reply: "[turn 3] and again",
    });
    expect(await serving.metric("server_restarts_total", { reason: "crash" })).toBe(crashes + 1);
    await expectConsistent(fleet);
  });

  it("serve makes a hung server healthy within 20 s under the default settings", async () => {
    const { user, server, library, session, pid } = await watched("carol");
    using took = new Stopwatch();
    process.kill(pid, "SIGSTOP");
    await healthyAgain(fleet, user, pid, 60_000);
    const ms = took.ms;
    console.log(`healthy ${Math.round(ms)} ms after it hung`);
    expect(ms).toBeLessThan(20_000);
    expect((await fleet.record(user)).port).toBe(server.port);
    expect(isRunning(pid)).toBe(false);
    expect(await library.sessions.send(session, "again")).toMatchObject({ text: "[turn 2] again" });
  });
});

it("ps and the metrics show a hung server as unhealthy, with the reason, until serve ends it", async () => {
  const fleet = await faultFleet(FAST_HEALTH);
  const { pid, id } = await fleet.spawn("alice");
  await fleet.spawn("bob");
  const serving = await serve(fleet, { env: { COPILOTFLEET_HEALTH_FAILURES: "8" } });
  process.kill(pid ?? 0, "SIGSTOP");
  const shown = await eventually("unhealthy", async () =>
    (await fleet.ps()).find(({ state }) => state === "unhealthy"),
  );
  expect(shown).toMatchObject({ id, pid, failure: expect.stringMatching(/within \d+ ms.* \(\d+ of 8\)$/) });
  await eventually("the metric", async () => (await serving.metric("servers", { state: "unhealthy" })) === 1);
  expect(await serving.readyz()).toMatchObject({ status: 200 });
  await healthyAgain(fleet, "alice", pid ?? 0, 60_000);
  expect(await fleet.ps()).toMatchObject([{ id, state: "ready", failure: null }, { state: "ready" }]);
  expect(await serving.metric("server_restarts_total", { reason: "hang" })).toBe(1);
  await expectConsistent(fleet);
  await serving.end();
});

it.each([false, true])(
  "serve does not end a hung server that answers again in time (serve killed and started again: %s)",
  async (replaced) => {
    const fleet = await faultFleet({ ...FAST_HEALTH, COPILOTFLEET_HEALTH_FAILURES: "100" });
    const { pid } = await fleet.spawn("alice");
    let serving = await serve(fleet);
    process.kill(pid ?? 0, "SIGSTOP");
    await eventually("unhealthy", async () => (await fleet.record("alice")).state === "unhealthy");
    if (replaced) {
      serving.kill("SIGKILL");
      await serving.done;
    }
    process.kill(pid ?? 0, "SIGCONT");
    if (replaced) serving = await serve(fleet);
    await eventually("ready", async () => (await fleet.record("alice")).state === "ready");
    expect(await fleet.ps()).toMatchObject([{ state: "ready", pid, failure: null, crashes: 0 }]);
    await serving.end();
  },
);

it("serve backs off from a server that ends at each start, then gives up, and harms no other server", async () => {
  const fleet = await faultFleet({ ...FAST_HEALTH, COPILOTFLEET_HEALTH_RESTARTS: "4" });
  const [alice, bob] = [await fleet.spawn("alice"), await fleet.spawn("bob")];
  const broken = { env: { COPILOTFLEET_RUNTIME_PATH: fake("exits.mjs") } };
  let serving = await serve(fleet, broken);
  process.kill(alice.pid ?? 0, "SIGKILL");
  const shown = await eventually("the end", async () =>
    (await fleet.ps()).find(({ failure }) => failure?.startsWith("crash loop: ") === true),
  );
  expect(shown).toMatchObject({ user: "alice", state: "failed", crashes: 5, pid: null, port: null });
  expect(shown.failure).toMatch(/it ended 5 times in a row.*the frobnicator/);
  expect(shown.failure).not.toContain("\u001b");
  const starts = await startsOf(fleet, "alice", serving);
  expect(starts).toHaveLength(4);
  // The first start is immediate. The next ones wait for at least half of 100, 200 and 400 ms, plus the time to start.
  const waits = starts.slice(1).map((time, index) => time - (starts[index] ?? 0));
  for (const [index, leastMs] of [50, 100, 200].entries()) expect(waits[index]).toBeGreaterThanOrEqual(leastMs);
  expect(await serving.metric("server_crash_loops_total")).toBe(1);
  expect((await fleet.ps())[1]).toMatchObject({ user: "bob", state: "ready", pid: bob.pid, crashes: 0 });

  // The next supervisor does not start the server either, and does not record the crash loop again.
  serving.kill("SIGKILL");
  await serving.done;
  serving = await serve(fleet, broken);
  await serving.logged(/is not started again$/);
  expect(await startsOf(fleet, "alice", serving)).toEqual([]);
  const { failure } = await fleet.record("alice");
  expect(failure?.match(/crash loop/g)).toHaveLength(1);

  // A user starts the server with a working runtime. The server then runs again, and its crashes count from 0.
  const again = await fleet.spawn("alice");
  expect(again).toMatchObject({ state: "ready", port: alice.port, crashes: 0, failure: null });
  await eventually("the monitor", () => serving.log().find(({ serverPid }) => serverPid === again.pid));
  process.kill(again.pid ?? 0, "SIGKILL");
  await eventually("the next end", async () => (await fleet.record("alice")).failure?.startsWith("crash loop: "));
  expect(await startsOf(fleet, "alice", serving)).toHaveLength(4);
  expect((await fleet.record("alice")).crashes).toBe(5);
  await expectConsistent(fleet);
  await serving.end();
});

it("the liveness deadline does not end a server that is starting", async () => {
  const gate = mkdtempSync(join(tmpdir(), "copilotfleet-gate-"));
  onTestFinished(() => rmSync(gate, { recursive: true }));
  const fleet = await faultFleet(FAST_HEALTH);
  const { pid, port } = await fleet.spawn("alice");
  const watched = await fleet.spawn("bob");
  const serving = await serve(fleet, { env: lateServers(gate) });
  process.kill(pid ?? 0, "SIGKILL");
  await eventually("the start", async () => (await fleet.record("alice")).state === "starting");
  // The liveness deadline would end the start after three probes.
  const probes = await serving.metric("probes_total");
  await eventually("some probes of bob's server", async () => (await serving.metric("probes_total")) >= probes + 6);
  expect(await startsOf(fleet, "alice", serving)).toHaveLength(1);
  expect(await fleet.record("alice")).toMatchObject({ state: "starting", crashes: 1 });
  writeFileSync(join(gate, "open"), "");
  await healthyAgain(fleet, "alice", pid ?? 0);
  const [alice, bob] = await fleet.ps();
  expect(alice).toMatchObject({ state: "ready", port, pid: await pidOf(fleet, "alice") });
  expect(bob).toMatchObject({ state: "ready", pid: watched.pid });
  expect(fleet.servers()).toHaveLength(2);
  await serving.end();
});
