import { setTimeout as delay } from "node:timers/promises";
import { FleetError, systemCode } from "../../errors.js";
import type { ProcessIdentity } from "../../model/process.js";
import type { SandboxReport } from "../../model/sandbox.js";
import { groupsOf, processesInGroup, removeGroup } from "../../sandbox/limits/cgroups.js";
import { logPath } from "../files/server-folder.js";
import { processesOfLaunch } from "./launches.js";
import { identify, isAlive, processesOfSession, writersOf } from "./process-table.js";

export type StopOutcome = "terminated" | "killed" | "already-stopped";

/** Identifies a server to stop. Each part may be null if it is not known. */
export interface StopTarget {
  /**
   * Null if the process is dead or was never ready. The stop finds the remaining processes by `launchId` and `home`.
   */
  process: ProcessIdentity | null;
  launchId: string | null;
  /**
   * The server's home. A new child process has the log beside the home open even before it calls exec, so the stop
   * finds it by this log. Null if such a child cannot exist.
   */
  home: string | null;
  /**
   * The sandbox of the launch. A stop also ends the processes that are left in its control groups, and removes the
   * groups.
   */
  sandbox?: SandboxReport | undefined;
}

export interface StopOptions {
  /** How long the server may take to end after SIGTERM, before SIGKILL, in milliseconds. */
  graceMs: number;
  force?: boolean;
  /** When this signal aborts, the grace period ends at once. */
  hurry?: AbortSignal;
}

const POLL_MS = 10;
/** How long bwrap may take to end after its server, and to report how the server ended, in milliseconds. */
const BWRAP_END_MS = 1_000;
const KILL_WAIT_MS = 5_000;

/**
 * Stops a server and everything that it started: SIGTERM, a grace period, SIGKILL. Then kills all other processes of its
 * process session and of its launch. Checks the identity of each process right before each signal, because PIDs are reused.
 * SIGTERM cuts turns in flight, so drain the server first.
 */
export async function stopServer(
  { process: identity, launchId, home, sandbox }: StopTarget,
  options: StopOptions,
): Promise<StopOutcome> {
  let outcome: StopOutcome = "already-stopped";
  const { limits } = sandbox ?? {};
  const runs = identity !== null && isAlive(identity);
  const groups = limits === undefined ? [] : groupsOf(limits, runs ? identity.pid : null);
  if (runs) {
    outcome = "terminated";
    let session = processesOfSession(identity);
    const skip = options.force === true || options.hurry?.aborted === true;
    const ended = skip ? false : await signalAndWait([identity], "SIGTERM", options.graceMs, options.hurry);
    if (!ended) {
      outcome = "killed";
      session = [...session, ...processesOfSession(identity)];
      await kill([identity]);
    }
    await kill(session);
  } else if (identity?.innerPid !== undefined && launchId !== null) {
    const bwrap = processesOfLaunch(launchId).filter(({ pid }) => pid === identity.innerPid);
    await allGone(bwrap, BWRAP_END_MS);
  }
  if (identity === null && home !== null) await kill(writersOf(logPath(home)));
  if (launchId !== null) await killLaunch(launchId);
  for (const folder of groups) await endGroup(folder);
  return outcome;
}

/**
 * Kills the processes in a control group, and removes the group. Finds even processes that `killLaunch` misses, because they
 * changed their environment and our launcher gave them no mark.
 */
async function endGroup(folder: string): Promise<void> {
  const deadline = performance.now() + KILL_WAIT_MS;
  while (!removeGroup(folder)) {
    const left = processesInGroup(folder).flatMap((pid) => identify(pid) ?? []);
    if (performance.now() > deadline) {
      if (left.length > 0) throw stillThere(left);
      return;
    }
    // Read the group again. If a PID is still in the group, it belongs to the process that we identified, and not to a
    // later process with the same PID.
    const members = new Set(processesInGroup(folder));
    await kill(left.filter(({ pid }) => members.has(pid)));
    await delay(POLL_MS);
  }
}

/** Ends processes: SIGTERM, a grace period in milliseconds, SIGKILL. */
export async function endProcesses(processes: ProcessIdentity[], graceMs: number): Promise<void> {
  if (!(await signalAndWait(processes, "SIGTERM", graceMs))) await kill(processes);
}

/**
 * Kills all processes of a launch. Repeats until no process is left, because a process may start others before it is killed.
 */
async function killLaunch(launchId: string): Promise<void> {
  const deadline = performance.now() + KILL_WAIT_MS;
  for (let left = processesOfLaunch(launchId); left.length > 0; left = processesOfLaunch(launchId)) {
    if (performance.now() > deadline) throw stillThere(left);
    await kill(left);
  }
}

async function kill(processes: ProcessIdentity[]): Promise<void> {
  if (processes.length === 0 || (await signalAndWait(processes, "SIGKILL", KILL_WAIT_MS))) return;
  throw stillThere(processes.filter(isAlive));
}

function stillThere(processes: ProcessIdentity[]): FleetError {
  const pids = processes.map(({ pid }) => pid).join(", ");
  return new FleetError("FLEET_INTERNAL", `SIGKILL did not end process ${pids}: it hangs in the kernel.`);
}

async function signalAndWait(
  processes: ProcessIdentity[],
  signal: NodeJS.Signals,
  waitMs: number,
  hurry?: AbortSignal,
): Promise<boolean> {
  for (const identity of processes) {
    if (isAlive(identity)) sendSignal(identity.pid, signal);
  }
  return await allGone(processes, waitMs, hurry);
}

/** Waits until all processes have ended. Resolves with false if some of them still run after `waitMs` milliseconds. */
export async function allGone(
  processes: readonly ProcessIdentity[],
  waitMs: number,
  hurry?: AbortSignal,
): Promise<boolean> {
  const until = performance.now() + waitMs;
  while (processes.some(isAlive)) {
    if (performance.now() > until || hurry?.aborted === true) return false;
    await delay(POLL_MS);
  }
  return true;
}

/** Signals a process, or with a negative number a process group. Ignores a process that has already ended. */
export function sendSignal(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if (systemCode(error) !== "ESRCH") throw error;
  }
}
