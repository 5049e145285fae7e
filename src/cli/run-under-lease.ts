import { abortable } from "../runtime/deadline.js";
import { ForegroundCommand } from "../runtime/foreground.js";
import { type HeldLease, LEASE_VARIABLES } from "../sessions/leases.js";
import type { LeaseSignals } from "./lease-signals.js";

/** How long a command whose lease is lost may take over SIGTERM. */
const GRACE_MS = 5_000;

export interface RunOptions {
  signals: LeaseSignals;
  /** Standard output is for something else: the command's goes to standard error. */
  outputToStderr: boolean;
}

/**
 * Runs a command for as long as the lease is held; resolves with its exit code. If the lease is lost, the command and all
 * that it started are ended.
 *
 * Not guaranteed: when this process is killed, the command runs on, and its lease ends after its TTL. What must never
 * happen then has to be refused by the fence (`COPILOTFLEET_LEASE_FENCE`).
 *
 * @throws FleetError `FLEET_LEASE_LOST`, when the command has ended; the interrupt's reason, when it was not started.
 */
export async function runUnderLease(
  command: readonly string[],
  lease: HeldLease,
  { signals, outputToStderr }: RunOptions,
): Promise<number> {
  signals.interrupt.throwIfAborted();
  const running = new ForegroundCommand(command, {
    outputToStderr,
    env: {
      ...process.env,
      [LEASE_VARIABLES.session]: lease.lease.sessionId,
      [LEASE_VARIABLES.token]: lease.token,
      [LEASE_VARIABLES.fence]: String(lease.fence),
    },
  });
  // Before anything is waited for: a signal may arrive at any time from now on.
  signals.forwardTo((name) => running.signal(name));
  try {
    const { exitCode, problem } = await abortable(running.ended, lease.signal);
    if (problem !== null) process.stderr.write(`${problem}\n`);
    return exitCode;
  } catch (error) {
    await running.end(GRACE_MS);
    throw error;
  }
}
