import { readdirSync, readFileSync } from "node:fs";
import type { CopilotSession } from "@github/copilot-sdk";
import { expect, it, onTestFinished } from "vitest";
import { system } from "../../src/base/system/system.js";
import { identify } from "../../src/runtime/process/process-table.js";
import { eventually } from "../fixtures/eventually.js";
import { faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { FAST_HEALTH, serve } from "../fixtures/fleets/serve.js";
import { directSession } from "../fixtures/fleets/turns.js";
import { startToolModel, type ToolModel } from "../fixtures/models/tool-model.js";
import { isRunning } from "../fixtures/processes.js";
import { bwrapProblem } from "../fixtures/programs/bwrap.js";

/** serve waits twelve intervals before it ends a process of an unloaded session. */
const FAST = { ...FAST_HEALTH, COPILOTFLEET_HEALTH_INTERVAL: "200ms", COPILOTFLEET_HEALTH_FAILURES: "10" };
const HOLD_BYTES = 150_000_000;
/**
 * A script that keeps memory allocated until it is killed. It is in Perl, because a process in the sandbox can run the
 * machine's programs, but not a Node.js that is installed in a home folder.
 */
const HOG = `$b = "x" x ${HOLD_BYTES}; sleep`;

async function toolModel(): Promise<ToolModel> {
  const model = await startToolModel();
  onTestFinished(async () => await model[Symbol.asyncDispose]());
  return model;
}

/** Has the session's shell tool start a command that outlives the tool call. Resolves with the PIDs once it runs. */
async function leaveRunning(session: CopilotSession, command: string): Promise<number[]> {
  const call = { command: `setsid ${command} >/dev/null 2>&1 &`, description: "test", mode: "sync" };
  await session.sendAndWait({ prompt: `!tool bash ${JSON.stringify(call)}` }, 30_000);
  const marked = () => running(command);
  return await eventually(command, () => (marked().length === 2 ? marked() : null)); // the model calls its tool twice
}

/** The PIDs of all processes with this command line. */
function running(command: string): number[] {
  return readdirSync("/proc")
    .map(Number)
    .filter((pid) => Number.isInteger(pid) && commandLine(pid) === command && identify(pid) !== null);
}

function commandLine(pid: number): string | null {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0").join(" ").trim();
  } catch {
    return null; // it ended
  }
}

it.each(bwrapProblem === undefined ? ["auto", "bwrap"] : ["auto"])(
  "serve ends the processes of an unloaded session, but none of a loaded or reloaded session or of the sandbox %s",
  async (mode) => {
    const fleet = await faultFleet({ ...FAST, COPILOTFLEET_SANDBOX_MODE: mode });
    const model = await toolModel();
    const { pid } = await fleet.spawn("alice");
    const [left, stays, returns] = await Promise.all(
      ["left", "stays", "returns"].map(async (id) => await directSession(fleet, model, id)),
    );
    if (left === undefined || stays === undefined || returns === undefined) throw new Error("a session is missing");
    const ofLeft = await leaveRunning(left, "sleep 26101");
    const ofStays = await leaveRunning(stays, "sleep 26102");
    const ofReturns = await leaveRunning(returns, "sleep 26103");
    // The runtime does not put a session id into the environment of this process.
    await left.rpc.shell.exec({ command: "exec sleep 26104" });
    const [ofNone] = await eventually("shell.exec", () =>
      running("sleep 26104").length > 0 ? running("sleep 26104") : null,
    );

    const serving = await serve(fleet);
    await returns.disconnect();
    const back = await directSession(fleet, model, "returns", { resume: true });
    await left.disconnect();
    const ended = await serving.logged(/ended 2 processes of unloaded sessions$/);
    expect(ended).toMatchObject({ sessions: ["left"], pids: expect.arrayContaining(ofLeft) });
    expect(ofLeft.filter(isRunning)).toEqual([]);
    for (const other of [...ofStays, ...ofReturns, ofNone ?? 0])
      expect(isRunning(other), "while a session that may own it is loaded").toBe(true);

    await Promise.all([stays.disconnect(), back.disconnect()]);
    await eventually("the end of the others", () => ![...ofStays, ...ofReturns, ofNone ?? 0].some(isRunning));
    expect((await fleet.ps())[0]).toMatchObject({ pid, state: "ready" });
    // In bwrap, the runtime's PID inside the sandbox equals bwrap's PID outside.
    const { process: identity } = await fleet.record("alice");
    expect(isRunning(identity?.innerPid ?? pid ?? 0), "bwrap").toBe(true);
    await serving.end();
  },
);

it("recycle.maxMemory and the memory metric include all processes that a server's sessions started", async () => {
  const fleet = await faultFleet(FAST);
  const { pid } = await fleet.spawn("alice");
  const session = await directSession(fleet, await toolModel(), "hungry");
  const command = `perl -e ${HOG}`;
  const call = {
    command: `setsid perl -e '${HOG}' >/dev/null 2>&1 &`,
    description: "test",
    mode: "sync",
  };
  await session.sendAndWait({ prompt: `!tool bash ${JSON.stringify(call)}` }, 30_000);
  const hogs = await eventually("the memory", () => {
    const pids = running(command);
    return pids.length === 2 && pids.every((hog) => (system().processes.privateMemoryBytes(hog) ?? 0) > HOLD_BYTES)
      ? pids
      : null;
  });
  expect(system().processes.privateMemoryBytes(pid ?? 0)).toBeLessThan(HOLD_BYTES);
  const watching = await serve(fleet);
  await eventually("the metric", async () => (await watching.metric("servers_memory_bytes")) > 2 * HOLD_BYTES);
  watching.kill("SIGKILL"); // the server keeps running
  await watching.done;
  const serving = await serve(fleet, { env: { COPILOTFLEET_RECYCLE_MAX_MEMORY: "200mb" } });
  expect(await serving.logged(/ was recycled$/, { withinMs: 20_000 })).toMatchObject({ reason: "memory" });
  expect(hogs.filter(isRunning)).toEqual([]);
  expect((await fleet.ps())[0]?.pid).not.toBe(pid);
  await serving.end();
});
