import { appendFileSync, readFileSync, rmSync } from "node:fs";
import { expect, it } from "vitest";
import { logPath } from "../../src/runtime/files/server-folder.js";
import { readableLine, readLogKey } from "../../src/runtime/files/server-log.js";
import { identify } from "../../src/runtime/process/process-table.js";
import { eventually } from "../fixtures/eventually.js";
import { expectConsistent, type FaultFleet, fake, faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { FAST_HEALTH, serve } from "../fixtures/fleets/serve.js";
import { directSession, directTurn, echoModel, heldModel, heldTurn, openLibrary } from "../fixtures/fleets/turns.js";

const KILLED = /^killed by SIGKILL at \d{4}-\d\d-\d\dT[\d:.]+Z/;

it("ps names the signal that killed a server while the process that started the server still runs", async () => {
  const fleet = await faultFleet();
  const library = await openLibrary(fleet);
  const { server } = await library.servers.spawn("alice");
  process.kill(server.pid ?? 0, "SIGKILL");
  await eventually("the end", () => identify(server.pid ?? 0) === null);
  expect(await fleet.ps()).toMatchObject([{ state: "failed", failure: expect.stringMatching(KILLED) }]);
});

it("ps names the exit code of a server that somebody else ended with SIGTERM", async () => {
  const fleet = await faultFleet();
  const library = await openLibrary(fleet);
  const { server } = await library.servers.spawn("alice");
  process.kill(server.pid ?? 0, "SIGTERM");
  await eventually("the end", () => identify(server.pid ?? 0) === null);
  expect(await fleet.ps()).toMatchObject([
    { state: "failed", failure: expect.stringMatching(/^exited with code 0 at /) },
  ]);
});

it("the log of serve and the reason of a crash loop name the signal that killed the server", async () => {
  const fleet = await faultFleet({ ...FAST_HEALTH, COPILOTFLEET_HEALTH_RESTARTS: "1" });
  const serving = await serve(fleet);
  const first = await fleet.spawn("alice");
  process.kill(first.pid ?? 0, "SIGKILL");
  const second = await eventually("a start by serve", async () => {
    const record = await fleet.record("alice");
    return record.state === "ready" && record.process?.pid !== first.pid ? record.process : null;
  });
  process.kill(second.pid, "SIGKILL");
  await eventually("the crash loop", async () =>
    (await fleet.record("alice")).failure?.includes("Last time: killed by SIGKILL at "),
  );
  expect(serving.log()).toContainEqual(
    expect.objectContaining({ state: "failed", failure: expect.stringMatching(KILLED) }),
  );
  await serving.end();
});

it("the reason of a failure quotes only what the last launch logged, even after the log was rotated", async () => {
  const fleet = await faultFleet();
  for (let launch = 1; launch <= 3; launch++) {
    const { id, pid, home } = await fleet.spawn("alice");
    const log = logPath(home);
    if (launch === 1) appendFileSync(log, "the first launch was here\n");
    process.kill(pid ?? 0, "SIGKILL");
    await eventually("the end", () => identify(pid ?? 0) === null);
    const [view] = await fleet.ps();
    expect(view?.id).toBe(id);
    expect(view?.failure).not.toContain("CLI server listening");
    expect(view?.failure).not.toContain("[copilotfleet]");
    expect(view?.failure?.includes("the first launch was here")).toBe(launch === 1);
    // `ps` prints how long ago the server ended, and the command that shows its log.
    expect(await fleet.ok(["ps"])).toMatch(
      /^alice-\w+: killed by SIGKILL \d+[sm] ago.* \(last log lines: copilotfleet logs alice\)$/m,
    );
  }
  const { pid, home } = await fleet.spawn("alice");
  rmSync(logPath(home)); // like a rotation: the log becomes shorter than it was at the launch
  appendFileSync(logPath(home), "after the rotation\n");
  process.kill(pid ?? 0, "SIGKILL");
  await eventually("the end", () => identify(pid ?? 0) === null);
  expect((await fleet.ps())[0]?.failure).toMatch(/; the end of its log: after the rotation$/);
});

it("stop waits for a turn that a client began without the fleet", async () => {
  const fleet = await faultFleet();
  const model = await heldModel();
  await fleet.spawn("alice");
  const session = await directSession(fleet, model, "own");
  const reply = await heldTurn(session, model);
  let stopped = false;
  const stopping = fleet.json(["stop", "--user", "alice"]).finally(() => (stopped = true));
  await eventually("the drain", async () => (await fleet.record("alice")).state === "draining");
  // Run ps to let some time pass. The stop must still be waiting after it.
  expect(await fleet.ps()).toMatchObject([{ state: "draining" }]);
  expect(stopped).toBe(false);
  model.release();
  expect(await reply()).toBe("[turn 1] done");
  expect(await stopping).toMatchObject({ stopped: [{ outcome: "drained", cut: [] }] });
  expect(fleet.processes()).toEqual([]);
  // The next server knows the turn, which shows that the history is complete.
  expect(await fleet.json(["send", "own", "again", "--user", "alice"])).toMatchObject({ reply: "[turn 2] again" });
});

it("stop --drain-timeout cuts a turn that a client began without the fleet, names the session, and exits with 8", async () => {
  const fleet = await faultFleet();
  const model = await echoModel();
  await fleet.spawn("alice");
  const session = await directSession(fleet, model, "own");
  await directTurn(session, model, 60_000);
  // A stop that waited for the turn or for the configured deadline would count as hung.
  const result = await fleet.run(["stop", "--user", "alice", "--drain-timeout", "500ms", "--json"], {
    env: { COPILOTFLEET_DRAIN_TIMEOUT: "10m" },
  });
  expect(result.code).toBe(8);
  expect(JSON.parse(result.stdout)).toMatchObject({ stopped: [{ outcome: "killed", cut: ["own"] }] });
});

/** Tests that a server's log is right when the command that was stopping the server was killed. */

const USER = ["--user", "alice"];
/** This runtime still serves after the first SIGTERM, and ends at the second. */
const TWICE = { COPILOT_CLI_PATH: fake("twice.mjs") };

/** The fleet's last line in the log of alice's server, without the time, and with N for the stopping process's PID. */
async function lastLine(fleet: FaultFleet): Promise<string> {
  const { home } = await fleet.record("alice");
  const lines = readFileSync(logPath(home), "utf8").split("\n");
  const line = lines.findLast((each) => each.includes("[copilotfleet]")) ?? "";
  return readableLine(line, readLogKey(logPath(home)))
    .replace(/^\S+ \[copilotfleet\] /, "")
    .replace(/(stopped by process) \d+/, "$1 N");
}

/** Kills a command while it waits for the end of alice's server after SIGTERM. Resolves with the PID of that server. */
async function interrupted(fleet: FaultFleet, command: readonly string[]): Promise<number> {
  const { pid, home } = await fleet.spawn("alice");
  const { child, done } = fleet.start(command);
  await eventually("the SIGTERM", () => readFileSync(logPath(home), "utf8").includes("\nending\n"));
  child.kill("SIGKILL");
  await done;
  return pid ?? 0;
}

const UNFINISHED = "because the command that was stopping it had ended";

it.each([
  [["ps"], `, ${UNFINISHED}: ended after SIGTERM.`],
  [["stop", ...USER], ": ended after SIGTERM."],
  [["stop", "--force", ...USER], ": killed by SIGKILL."],
])("%j finishes a stop that was killed, and records in the log how the server ended", async (command, how) => {
  const fleet = await faultFleet(TWICE);
  const pid = await interrupted(fleet, ["stop", ...USER]);
  await fleet.ok(command);
  expect(await lastLine(fleet)).toBe(`Process ${pid} was stopped by process N${how}`);
  expect(await fleet.record("alice")).toMatchObject({ state: "stopped", desired: "stopped", process: null });
  await expectConsistent(fleet);
});

it("serve finishes a stop that was killed, and records in the log how the server ended", async () => {
  const fleet = await faultFleet({ ...TWICE, ...FAST_HEALTH });
  const pid = await interrupted(fleet, ["stop", ...USER]);
  const serving = await serve(fleet);
  await eventually("the end of the stop", async () => (await fleet.record("alice")).state === "stopped");
  expect(await lastLine(fleet)).toBe(`Process ${pid} was stopped by process N, ${UNFINISHED}: ended after SIGTERM.`);
  await serving.end();
});
