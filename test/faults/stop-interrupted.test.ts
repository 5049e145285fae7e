import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { logPath } from "../../src/runtime/files/server-folder.js";
import { readableLine, readLogKey } from "../../src/runtime/files/server-log.js";
import { eventually } from "../fixtures/eventually.js";
import { expectConsistent, type FaultFleet, fake, faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { FAST_HEALTH, serve } from "../fixtures/fleets/serve.js";
import { isRunning } from "../fixtures/processes.js";

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

it("after a stop was killed, spawn logs the end of the old process before it starts a new process", async () => {
  const fleet = await faultFleet(TWICE);
  const pid = await interrupted(fleet, ["stop", ...USER]);
  const server = await fleet.spawn("alice");
  expect(server.pid).not.toBe(pid);
  const end = `Process ${pid} was stopped by process \\d+, ${UNFINISHED}: killed by SIGKILL\\. #\\S+\n`;
  expect(readFileSync(server.log, "utf8")).toMatch(new RegExp(`${end}.*Launch on port`));
  await expectConsistent(fleet);
});

it("after a stop was killed and its server ended, ps logs that a command was stopping the server", async () => {
  const fleet = await faultFleet(TWICE);
  const pid = await interrupted(fleet, ["stop", ...USER]);
  process.kill(pid, "SIGTERM");
  await eventually("the end of the server", () => !isRunning(pid));
  await fleet.ok(["ps"]);
  expect(await lastLine(fleet)).toMatch(
    new RegExp(`^Process ${pid} ended while a command was stopping it(: exited with code 0)?\\.$`),
  );
  expect(await fleet.record("alice")).toMatchObject({ state: "stopped" });
});

it("after a rolling restart was killed, ps logs that the new process replaces the old one", async () => {
  const fleet = await faultFleet(TWICE);
  const pid = await interrupted(fleet, ["restart", "--rolling", ...USER]);
  await fleet.ok(["ps"]);
  const server = await fleet.server("alice");
  expect(server.state).toBe("ready");
  expect(server.pid).not.toBe(pid);
  const because = `because process ${server.pid} replaces it`;
  expect(await lastLine(fleet)).toBe(`Process ${pid} was stopped by process N, ${because}: killed by SIGKILL.`);
  await expectConsistent(fleet);
});
