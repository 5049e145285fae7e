import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { expect, it } from "vitest";
import { ownPid } from "../../src/runtime/history/session-state.js";
import { COMMAND, type Running } from "../fixtures/commands/command.js";
import { eventually } from "../fixtures/eventually.js";
import { expectConsistent, type FaultFleet, faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { childrenOf, isRunning } from "../fixtures/processes.js";
import { bwrapProblem } from "../fixtures/programs/bwrap.js";
import { straceProblem } from "../fixtures/store/store-strace.js";

const problem = straceProblem();

/**
 * The calls of `execve` in a server's process, each of which replaces the running program with the next. strace delays
 * call number `when` by `ms` milliseconds. In bwrap, several processes make a call with this number, so `ms` is lower.
 */
const EXECS = [
  { mode: "none", when: 1, ms: 2_000, programs: "the runtime" },
  ...(bwrapProblem === undefined
    ? ([
        { mode: "bwrap", when: 1, ms: 500, programs: "both shells and setpriv" },
        { mode: "bwrap", when: 2, ms: 500, programs: "bwrap and the launcher of the sandbox" },
        { mode: "bwrap", when: 3, ms: 500, programs: "the runtime" },
      ] as const)
    : []),
] as const;

const slowExec = ({ when, ms }: (typeof EXECS)[number]) => {
  return ["-e", "trace=execve", "-e", `inject=execve:delay_enter=${ms}ms:when=${when}`];
};

/** Where a spawn is killed: a system call, its number among the calls of this kind in its thread, and its effect. */
const POINTS = [
  ["rename", 1, "the planned start is committed to the registry"],
  ["clone", 1, "the first trial of a sandbox is forked"],
  ["clone", 3, "the server is forked"],
  ["setsid", 1, "the forked server leaves its parent's session"],
  ["connect", 1, "the server gets its first probe"],
  ["rename", 2, "the ready server is committed to the registry"],
] as const;

it.for(POINTS)(
  "ps clears away what is left of a spawn that is killed in its %s call number %i, when %s",
  async ([call, when], ctx) => {
    if (problem !== undefined) return ctx.skip(problem);
    const fleet = await faultFleet({ UV_THREADPOOL_SIZE: "1" });
    await killedUnder(
      fleet,
      traceSpawn(fleet, ["-e", `trace=${call}`, "-e", `inject=${call}:signal=SIGKILL:when=${when}`]),
    );
    await expectConsistent(fleet);
    expect(await fleet.spawn("alice")).toMatchObject({ state: "ready" });
    await expectConsistent(fleet);
  },
);

function traceSpawn(fleet: FaultFleet, options: readonly string[]): Running {
  return fleet.start(["spawn", "--user", "alice"], { under: ["strace", "-f", "-q", "-o", traceOf(fleet), ...options] });
}

/** Waits until a traced command is killed, and then ends strace, which still traces the server. */
async function killedUnder(fleet: FaultFleet, traced: Running): Promise<void> {
  // Read the trace, because the command may be gone before we see its process. The command is strace's only child, and
  // strace reaps it when all of its threads have ended.
  const isKilled = () => {
    const trace = existsSync(traceOf(fleet)) ? readFileSync(traceOf(fleet), "utf8") : "";
    return trace.includes("killed by SIGKILL") && childrenOf(traced.pid).length === 0;
  };
  await eventually("the kill", isKilled, 30_000);
  traced.child.kill("SIGKILL");
  await traced.done;
}

function traceOf(fleet: FaultFleet): string {
  return join(dirname(fleet.root), "strace.log");
}

async function commandUnder({ pid }: Running): Promise<number> {
  return await eventually("the traced command", () =>
    childrenOf(pid).find((child) => argumentsOf(child)[1] === COMMAND),
  );
}

function argumentsOf(pid: number): string[] {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
  } catch {
    return []; // it ended after it was listed
  }
}

it.for(EXECS)("ps finds a server whose spawn was killed before $programs run in $mode", async (point, ctx) => {
  if (problem !== undefined) return ctx.skip(problem);
  const fleet = await faultFleet({ COPILOTFLEET_SANDBOX_MODE: point.mode });
  const traced = traceSpawn(fleet, slowExec(point));
  const command = await commandUnder(traced);
  const first = await startingUnder(fleet, command);
  process.kill(command, "SIGKILL");
  // On a busy machine, the runtime may need longer to listen than ps waits for it.
  await eventually("ps finds the server ready", async () => {
    const servers = await fleet.ps();
    expect(servers).toMatchObject([{ state: expect.stringMatching(/^(starting|ready)$/) }]);
    return servers[0]?.state === "ready";
  });
  const { process: found } = await fleet.record("alice");
  // In bwrap, the server's PID inside the sandbox equals the PID of the first process outside.
  expect(found === null ? null : ownPid(found)).toBe(first);
  traced.child.kill("SIGKILL");
  await traced.done;
  await expectConsistent(fleet);
});

it.for(EXECS)("stop ends a server whose spawn was killed before $programs run in $mode", async (point, ctx) => {
  if (problem !== undefined) return ctx.skip(problem);
  const fleet = await faultFleet({ COPILOTFLEET_SANDBOX_MODE: point.mode });
  const traced = traceSpawn(fleet, slowExec(point));
  const command = await commandUnder(traced);
  const first = await startingUnder(fleet, command);
  process.kill(command, "SIGKILL");
  await fleet.json(["stop", "--user", "alice"]);
  expect(isRunning(first)).toBe(false);
  expect(fleet.processes()).toEqual([]);
  await traced.done;
  expect(await fleet.record("alice")).toMatchObject({ state: "stopped", port: null });
});

/**
 * Resolves with the PID of the first process of the server that a command is starting. Waits until the start is
 * recorded, because an earlier child process of the command only tries the sandbox.
 */
async function startingUnder(fleet: FaultFleet, command: number): Promise<number> {
  const isRecorded = () => existsSync(join(fleet.root, "registry.json"));
  const [server] = await eventually(
    "the fork",
    () => isRecorded() && childrenOf(command).length > 0 && childrenOf(command),
    20_000,
  );
  return server ?? 0;
}
