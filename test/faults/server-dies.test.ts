import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it, onTestFinished } from "vitest";
import { Fleet } from "../../src/fleet/fleet.js";
import { eventually } from "../fixtures/eventually.js";
import { errorOf, expectConsistent, type FaultFleet, faultFleet, rounds } from "../fixtures/fleets/fault-fleet.js";
import { killed, statusOf } from "../fixtures/processes.js";
import { Stopwatch } from "../fixtures/stopwatch.js";

/** How long a command may take when a server does not answer, in milliseconds. */
const BOUND_MS = 30_000;

async function library(fleet: FaultFleet): Promise<Fleet> {
  const opened = await Fleet.open({ env: fleet.env });
  onTestFinished(() => opened.close());
  return opened;
}

async function pidOf(fleet: FaultFleet, user: string): Promise<number> {
  const { process: identity } = await fleet.record(user);
  if (identity === null) throw new Error(`the server of ${user} is recorded without a process`);
  return identity.pid;
}

/** Suspends the server's process, which then still exists but does nothing. Resolves with its PID. */
async function suspend(fleet: FaultFleet, user: string): Promise<number> {
  const pid = await pidOf(fleet, user);
  process.kill(pid, "SIGSTOP");
  await eventually("the suspension", () => statusOf(pid).state === "T");
  return pid;
}

it("ps shows a killed server as failed, and the next user's server gets the port of the killed one", async () => {
  const fleet = await faultFleet();
  await fleet.spawn("alice");
  await killed(await pidOf(fleet, "alice"));
  expect(await fleet.ps()).toMatchObject([{ user: "alice", state: "failed", pid: null, port: null, url: null }]);
  expect(await fleet.record("alice")).toMatchObject({ port: null, process: null, launchId: null, claim: null });
  expect(await fleet.spawn("bob")).toMatchObject({ port: fleet.ports.from });
  // Bob's server has alice's old port, so alice's server gets another port.
  expect(await fleet.spawn("alice")).toMatchObject({ state: "ready", port: fleet.ports.from + 1, failure: null });
  await expectConsistent(fleet);
});

it.each([
  [["spawn", "--user", "alice"]],
  [["send", "talk", "hi", "--user", "alice"]],
  [["restart", "--user", "alice"]],
])("the command %j starts a killed server again with its home and port", async (command) => {
  const fleet = await faultFleet();
  const { home } = await fleet.spawn("alice");
  await fleet.json(["create", "--id", "talk", "--user", "alice", "--prompt", "hi"]);
  await killed(await pidOf(fleet, "alice"));
  await fleet.json(command);
  expect(await fleet.record("alice")).toMatchObject({ state: "ready", port: fleet.ports.from, home });
  const { reply } = await fleet.json<{ reply: string }>(["send", "talk", "again", "--user", "alice"]);
  expect(reply).toMatch(/^\[turn [23]\] again$/);
  await expectConsistent(fleet);
});

it("a server gets the same port after each restart --force", async () => {
  const fleet = await faultFleet();
  await fleet.spawn("alice");
  for (let round = 0; round < rounds(2, 100); round++) {
    const { servers } = await fleet.json<{ servers: unknown }>(["restart", "--user", "alice", "--force"]);
    expect(servers).toMatchObject([{ state: "ready", port: fleet.ports.from }]);
  }
});

it("send exits at once and reports the server as lost when the server is killed during the turn", async () => {
  const fleet = await faultFleet();
  await fleet.json(["create", "--id", "talk", "--user", "alice", "--prompt", "hi"]);
  const { done } = fleet.start(["send", "talk", "!delay 60000 slow", "--user", "alice", "--json"]);
  const pid = await pidOf(fleet, "alice");
  await eventually("the turn", () => eventsOf(fleet, "alice", "talk").then((text) => text.includes("!delay")));
  using watch = new Stopwatch();
  process.kill(pid, "SIGKILL");
  const result = await done;
  expect(watch.ms).toBeLessThan(15_000);
  expect(result.code).toBe(7);
  expect(errorOf(result)).toMatchObject({ code: "FLEET_SERVER_LOST" });
  // The history contains every finished turn, and may contain the prompt of the cut turn.
  expect(await fleet.json(["send", "talk", "again", "--user", "alice"])).toMatchObject({
    reply: expect.stringMatching(/^\[turn [23]\] again$/),
  });
  await expectConsistent(fleet);
});

async function eventsOf(fleet: FaultFleet, user: string, session: string): Promise<string> {
  const { home } = await fleet.record(user);
  return readFileSync(join(home, "session-state", session, "events.jsonl"), "utf8");
}

it("every command ends within 30 s when the server hangs", async () => {
  const fleet = await faultFleet();
  // Each command uses its own session. In one session they would queue and wait for each other's deadlines.
  for (const id of ["talk", "talk-2"]) await fleet.json(["create", "--id", id, "--user", "alice", "--prompt", "hi"]);
  const pid = await suspend(fleet, "alice");
  const run = async (...args: string[]) => {
    using watch = new Stopwatch();
    const result = await fleet.run([...args, "--json"]);
    expect(watch.ms, args.join(" ")).toBeLessThan(BOUND_MS);
    return result;
  };
  // These commands succeed, because they only check that the server's process exists, and need no answer from it.
  expect(await run("spawn", "--user", "alice")).toMatchObject({ code: 0 });
  expect(await run("ps")).toMatchObject({ code: 0 });
  expect(await run("connect", "--user", "alice")).toMatchObject({ code: 0 });
  const asking = [
    ["send", "talk", "hi"],
    ["create", "--id", "other"],
    ["resume", "talk-2", "--prompt", "hi"],
  ];
  for (const result of await Promise.all(asking.map((args) => run(...args, "--user", "alice")))) {
    expect(result.code).toBe(7);
    expect(errorOf(result)).toMatchObject({ code: "FLEET_SERVER_UNREACHABLE" });
  }
  const result = await run("delete", "talk");
  expect(errorOf(result)).toMatchObject({ code: "FLEET_SERVER_UNREACHABLE" });
  expect(statusOf(pid).state).toBe("T");

  const stopped = await run("stop", "--user", "alice");
  expect(JSON.parse(stopped.stdout)).toMatchObject({ stopped: [{ outcome: "killed", cut: [] }] });
  expect(fleet.processes()).toEqual([]);
  expect(await fleet.json(["send", "talk", "again", "--user", "alice"])).toMatchObject({ reply: "[turn 2] again" });
  await expectConsistent(fleet);
});

it("the library's stop and close end within 30 s when their server hangs", async () => {
  const fleet = await faultFleet();
  const opened = await library(fleet);
  for (const user of ["alice", "bob"]) {
    const session = await opened.sessions.create({ user, sessionId: `of-${user}` });
    await opened.sessions.send(session, "hi");
    await suspend(fleet, user);
  }
  const { id } = await opened.servers.ofUser("alice");
  using watch = new Stopwatch();
  // The fleet could not ask whether the loaded session was in a turn, so the session counts as cut.
  expect((await opened.servers.stop([id])).stopped).toMatchObject([{ outcome: "killed", cut: ["of-alice"] }]);
  expect(watch.ms).toBeLessThan(BOUND_MS);
  using closing = new Stopwatch();
  await opened.close();
  expect(closing.ms).toBeLessThan(BOUND_MS);
});

it("send prints its answer after its server was suspended for a moment", async () => {
  const fleet = await faultFleet();
  await fleet.json(["create", "--id", "talk", "--user", "alice", "--prompt", "hi"]);
  const pid = await suspend(fleet, "alice");
  const { done } = fleet.start(["send", "talk", "again", "--user", "alice", "--json"]);
  await new Promise((resolve) => setTimeout(resolve, 1_500));
  process.kill(pid, "SIGCONT");
  const result = await done;
  expect(result).toMatchObject({ code: 0 });
  expect(JSON.parse(result.stdout)).toMatchObject({ reply: "[turn 2] again" });
});
