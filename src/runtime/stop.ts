import { setTimeout as delay } from "node:timers/promises";
import { FleetError, systemCode } from "../errors.js";
import type { ProcessIdentity } from "../store/store.js";
import { isAlive, processesOfLaunch, processesOfSession, writersOf } from "./process-table.js";
import { logPath } from "./server-folder.js";

export type StopOutcome = "terminated" | "killed" | "already-stopped";

/** What is known of a server that is to be stopped. */
export interface StopTarget {
  /** Null when it is dead, or was never ready: then what there is of it is found by the rest. */
  process: ProcessIdentity | null;
  launchId: string | null;
  /** Where a child that was not executed yet would have its log; null when there can be none, or no record tells it. */
  home: string | null;
}

export interface StopOptions {
  /** How long the server may take over SIGTERM before the group is killed, in milliseconds. */
  graceMs: number;
  /** Skip SIGTERM. */
  force?: boolean;
  /** Aborted: the grace period is over at once. */
  hurry?: AbortSignal;
}

const POLL_MS = 10;
const KILL_WAIT_MS = 5_000;

/**
 * Stops a server and everything it started: SIGTERM, a grace period, SIGKILL; then what is left of its session, and
 * whatever else carries its launch id.
 * Each process is proved to be the one meant right before each signal, so a reused PID is never touched.
 *
 * Turns in flight are lost on SIGTERM: drain first.
 *
 * @throws FleetError `FLEET_INTERNAL` when a process outlives SIGKILL (uninterruptible in the kernel).
 */
export async function stopServer(
  { process: identity, launchId, home }: StopTarget,
  options: StopOptions,
): Promise<StopOutcome> {
  let outcome: StopOutcome = "already-stopped";
  if (identity !== null && isAlive(identity)) {
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
  }
  if (identity === null && home !== null) await kill(writersOf(logPath(home)));
  if (launchId !== null) await killLaunch(launchId);
  return outcome;
}

/**
 * Ends processes: SIGTERM, a grace period in milliseconds, SIGKILL. @throws FleetError `FLEET_INTERNAL` as
 * {@link stopServer}.
 */
export async function endProcesses(processes: ProcessIdentity[], graceMs: number): Promise<void> {
  if (!(await signalAndWait(processes, "SIGTERM", graceMs))) await kill(processes);
}

/** Until none is found any more: those not killed yet may have started others meanwhile. */
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
    if (isAlive(identity)) send(identity.pid, signal);
  }
  const deadline = performance.now() + waitMs;
  while (processes.some(isAlive)) {
    if (performance.now() > deadline || hurry?.aborted === true) return false;
    await delay(POLL_MS);
  }
  return true;
}

function send(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if (systemCode(error) !== "ESRCH") throw error; // ended between the proof and the signal
  }
}
