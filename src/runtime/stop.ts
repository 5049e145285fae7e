import { setTimeout as delay } from "node:timers/promises";
import { FleetError, systemCode } from "../errors.js";
import type { ProcessIdentity } from "../store/store.js";
import { isAlive, processesOfLaunch } from "./process-table.js";

export type StopOutcome = "terminated" | "killed" | "already-stopped";

export interface StopOptions {
  /** How long the server may take over SIGTERM before the group is killed, in milliseconds. */
  graceMs: number;
  /** Skip SIGTERM. */
  force?: boolean;
}

const POLL_MS = 10;
const KILL_WAIT_MS = 5_000;

/**
 * Stops a server and everything it started: SIGTERM, a grace period, SIGKILL; then whatever else carries its launch id.
 * Each process is proved to be the one meant right before each signal, so a reused PID is never touched.
 *
 * Turns in flight are lost on SIGTERM: drain first.
 *
 * @throws FleetError `FLEET_INTERNAL` when a process outlives SIGKILL (uninterruptible in the kernel).
 */
export async function stopServer(
  identity: ProcessIdentity | null,
  launchId: string | null,
  options: StopOptions,
): Promise<StopOutcome> {
  let outcome: StopOutcome = "already-stopped";
  if (identity !== null && isAlive(identity)) {
    outcome = "terminated";
    const ended = options.force === true ? false : await signalAndWait([identity], "SIGTERM", options.graceMs);
    if (!ended) {
      outcome = "killed";
      await kill([identity]);
    }
  }
  if (launchId !== null) await kill(processesOfLaunch(launchId));
  return outcome;
}

async function kill(processes: ProcessIdentity[]): Promise<void> {
  if (processes.length === 0 || (await signalAndWait(processes, "SIGKILL", KILL_WAIT_MS))) return;
  const left = processes.filter(isAlive).map(({ pid }) => pid);
  throw new FleetError("FLEET_INTERNAL", `SIGKILL did not end process ${left.join(", ")}: it hangs in the kernel.`);
}

async function signalAndWait(processes: ProcessIdentity[], signal: NodeJS.Signals, waitMs: number): Promise<boolean> {
  for (const identity of processes) {
    if (isAlive(identity)) send(identity.pid, signal);
  }
  const deadline = performance.now() + waitMs;
  while (processes.some(isAlive)) {
    if (performance.now() > deadline) return false;
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
