import { spawnSync } from "node:child_process";
import { mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { approveAll, CopilotClient, RuntimeConnection } from "@github/copilot-sdk";
import { expect, it, onTestFinished } from "vitest";
import { serverIdOf } from "../../src/model/ids.js";
import { startEchoModel } from "../../src/models/echo.js";
import { homeOf } from "../../src/runtime/files/server-folder.js";
import { eventually } from "../fixtures/eventually.js";
import { expectConsistent, type FaultFleet, faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { FAST_HEALTH, type Serving, serve } from "../fixtures/fleets/serve.js";
import { isRunning, killed } from "../fixtures/processes.js";

const WARM = {
  ...FAST_HEALTH,
  COPILOTFLEET_ISOLATION: "shared",
  COPILOTFLEET_POOL_SERVERS: "3",
  COPILOTFLEET_POOL_WARM: "2",
};
const SLEEPY = { ...FAST_HEALTH, COPILOTFLEET_POOL_IDLE_TIMEOUT: "4s" };

/** The PIDs of the running shared servers, by server id. */
async function warm(fleet: FaultFleet): Promise<Record<string, number>> {
  const { servers } = await fleet.registry();
  return Object.fromEntries(
    Object.values(servers).flatMap(({ id, state, process: found }) =>
      state === "ready" && found !== null && isRunning(found.pid) ? [[id, found.pid]] : [],
    ),
  );
}

it("serve starts pool.warm shared servers before any user needs one, and restarts them after they were killed", async () => {
  const fleet = await faultFleet(WARM);
  const serving = await serve(fleet);
  const both = async () => {
    const running = await warm(fleet);
    return Object.keys(running).length === 2 ? running : undefined;
  };
  const first = await eventually("the warm servers", both);
  expect(Object.keys(first).toSorted()).toEqual(["shared-1", "shared-2"]);
  for (const pid of Object.values(first)) await killed(pid);
  const second = await eventually("the warm servers again", both);
  expect(Object.keys(second).toSorted()).toEqual(["shared-1", "shared-2"]);
  for (const pid of Object.values(second)) expect(Object.values(first)).not.toContain(pid);
  await fleet.json(["create", "--id", "talk", "--user", "alice", "--prompt", "hi"]);
  // A third server may run only if alice was placed on it, because pool.warm is 2.
  expect(Object.keys(await warm(fleet)).length).toBeLessThanOrEqual(3);
  expect(await serving.metric("server_restarts_total", { reason: "crash" })).toBe(2);
  await expectConsistent(fleet);
  expect(await serving.end()).toMatchObject({ code: 0 });
  expect(fleet.processes()).toEqual([]);
});

it("serve does not restart a warm server that somebody stopped, and never runs more than pool.servers servers", async () => {
  const fleet = await faultFleet({ ...WARM, COPILOTFLEET_POOL_SERVERS: "1" });
  const serving = await serve(fleet);
  await eventually("the warm server", async () => Object.keys(await warm(fleet)).length === 1);
  await fleet.json(["stop", "shared-1"]);
  // Count the probes only after serve has seen the stop, because until then a probe may still be running.
  await eventually("the stop is seen", async () => (await serving.metric("servers", { state: "stopped" })) === 1);
  const looks = await serving.metric("probes_total");
  const until = performance.now() + 2_500;
  await eventually("some looks", () => performance.now() > until);
  expect(await warm(fleet)).toEqual({});
  expect(await serving.metric("probes_total")).toBe(looks);
  expect(await serving.end()).toMatchObject({ code: 0 });
});

async function asleep(fleet: FaultFleet, user: string): Promise<boolean> {
  return (await fleet.record(user)).state === "stopped";
}

async function client(fleet: FaultFleet, user: string): Promise<CopilotClient> {
  const { url, token } = await fleet.json<{ url: string; token: string }>(["connect", "--user", user]);
  const connected = new CopilotClient({ connection: RuntimeConnection.forUri(url, { connectionToken: token }) });
  onTestFinished(() => connected.forceStop());
  await connected.start();
  return connected;
}

it("serve stops the servers of idle users, but no server with a client, and a stopped server starts on demand", async () => {
  const fleet = await faultFleet(FAST_HEALTH);
  const model = await startEchoModel();
  onTestFinished(() => model.close());
  for (const user of ["away", "connected", "talking"]) await fleet.spawn(user);
  await fleet.json(["create", "--id", "talk", "--user", "away", "--prompt", "hi"]);
  const connected = await client(fleet, "connected");
  const talking = await client(fleet, "talking");
  await talking.createSession({
    sessionId: "own",
    model: "gpt-5",
    onPermissionRequest: approveAll,
    provider: { type: "openai", wireApi: "completions", baseUrl: model.baseUrl, apiKey: "echo" },
  });
  const before = await fleet.record("away");
  const serving = await serve(fleet, { env: SLEEPY });
  await eventually("the sleep of the one that nobody uses", () => asleep(fleet, "away"));
  expect(await serving.logged(/was idle and was stopped/)).toMatchObject({ server: before.id, outcome: "drained" });
  expect(isRunning(before.process?.pid ?? 0)).toBe(false);
  // Wait longer than it took until the server of "away" was stopped.
  const until = performance.now() + 5_500;
  await eventually("some more time", async () => {
    expect(await asleep(fleet, "connected")).toBe(false);
    expect(await asleep(fleet, "talking")).toBe(false);
    return performance.now() > until;
  });
  // serve itself does not start the stopped server.
  expect(await asleep(fleet, "away")).toBe(true);
  expect(await fleet.json(["send", "talk", "again", "--user", "away"])).toMatchObject({ reply: "[turn 2] again" });
  expect(await fleet.record("away")).toMatchObject({ state: "ready", home: before.home });
  // The other servers may stop once their clients are gone.
  await connected.stop();
  await talking.stop();
  await eventually(
    "everybody's sleep",
    async () => {
      const states = await Promise.all(["away", "connected", "talking"].map((user) => asleep(fleet, user)));
      return states.every(Boolean);
    },
    20_000,
  );
  expect(await serving.metric("server_restarts_total")).toBe(0);
  await expectConsistent(fleet);
  expect(await serving.end()).toMatchObject({ code: 0 });
});

it("serve does not stop an idle server during a turn, however long the turn takes", async () => {
  const fleet = await faultFleet(FAST_HEALTH);
  await fleet.json(["create", "--id", "talk", "--user", "alice"]);
  const { process: before } = await fleet.record("alice");
  const turn = fleet.json<{ reply: string }>(["send", "talk", "!delay 6000 done", "--user", "alice"]);
  const serving = await serve(fleet, { env: SLEEPY });
  expect(await turn).toMatchObject({ reply: "[turn 1] done" });
  expect((await fleet.record("alice")).process).toEqual(before);
  await eventually("the sleep", () => asleep(fleet, "alice"));
  expect(await serving.end()).toMatchObject({ code: 0 });
});

async function healthyFor(serving: Serving, probes: number): Promise<void> {
  const from = await serving.metric("probes_total", { outcome: "ok" });
  await eventually(
    "good probes",
    async () => (await serving.metric("probes_total", { outcome: "ok" })) >= from + probes,
    20_000,
  );
}

it("with health.session, serve creates a session on each new probe connection, and leaves no trace of it", async () => {
  const fleet = await faultFleet({
    ...FAST_HEALTH,
    COPILOTFLEET_HEALTH_TIMEOUT: "10s",
    COPILOTFLEET_HEALTH_FAILURES: "40",
  });
  await fleet.json(["create", "--id", "talk", "--user", "alice", "--prompt", "hi"]);
  const { home, process: before } = await fleet.record("alice");
  const serving = await serve(fleet, { env: { COPILOTFLEET_HEALTH_SESSION: "true" } });
  // Wait for more probes than one connection is used for. By then, serve has created a session on each of two.
  await healthyFor(serving, 15);
  serving.kill("SIGSTOP");
  expect(readdirSync(join(home, "session-state")).filter((name) => name !== "talk")).toEqual([]);
  serving.kill("SIGCONT");
  const { sessions } = await fleet.json<{ sessions: { id: string }[] }>(["list"]);
  expect(sessions.map(({ id }) => id)).toEqual(["talk"]);
  const connected = await client(fleet, "alice");
  expect((await connected.listSessions()).map(({ sessionId }) => sessionId)).toEqual(["talk"]);
  expect(await fleet.record("alice")).toMatchObject({ state: "ready", process: before });
  expect(await serving.metric("probes_total", { outcome: "failed" })).toBe(0);
  await connected.stop();
  expect(await serving.end()).toMatchObject({ code: 0 });
});

it("with health.session, a server that cannot write to its home becomes unhealthy but is not killed", async (ctx) => {
  const possible = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"];
  if (spawnSync(possible[0] ?? "", possible.slice(1)).status !== 0)
    return ctx.skip("needs root and the right to mount");
  const fleet = await faultFleet({ COPILOTFLEET_HEALTH_INTERVAL: "1s", COPILOTFLEET_HEALTH_TIMEOUT: "3s" });
  // Mount the folder before the server starts, because a server in bwrap sees only the mounts that exist at its start.
  const state = join(homeOf(fleet.root, serverIdOf("alice")), "session-state");
  mkdirSync(state, { recursive: true, mode: 0o700 });
  expect(spawnSync("mount", ["-t", "tmpfs", "none", state]).status).toBe(0);
  onTestFinished(() => void spawnSync("umount", ["-l", state]));
  const { pid } = await fleet.spawn("alice");
  const remount = (access: "ro" | "rw") =>
    expect(spawnSync("mount", ["-o", `remount,${access}`, state]).status, access).toBe(0);
  remount("ro");
  const serving = await serve(fleet, { env: { COPILOTFLEET_HEALTH_SESSION: "true" } });
  const sick = await serving.logged(/did not answer/);
  expect(sick.reason).toMatch(/read-only file system/i);
  const seen = await eventually("a word in ps", async () => {
    const [server] = await fleet.ps();
    return server?.failure === null ? undefined : server;
  });
  expect(seen.failure).toMatch(/read-only file system/i);
  expect(seen.state).toBe("unhealthy");
  // The server still answers pings and may be in a turn, so serve does not kill it.
  await eventually("more probes", async () => (await serving.metric("probes_total", { outcome: "failed" })) >= 6);
  expect(await fleet.ps()).toMatchObject([{ state: "unhealthy", pid, failure: expect.stringContaining("3 of 3") }]);
  remount("rw");
  await eventually("a healthy server", async () => (await fleet.record("alice")).state === "ready", 20_000);
  await healthyFor(serving, 3);
  expect(await fleet.ps()).toMatchObject([{ state: "ready", pid, failure: null }]);
  expect(await serving.end()).toMatchObject({ code: 0 });
});
