import { abortable } from "../../runtime/deadline.js";
import { ForegroundCommand } from "../../runtime/launch/foreground.js";
import { type HeldLease, LEASE_VARIABLES } from "../../sessions/leases/leases.js";
import type { LeaseSignals } from "./lease-signals.js";

/** The time that a command gets to end after SIGTERM when its lease is lost. */
const GRACE_MS = 5_000;

export interface RunOptions {
  signals: LeaseSignals;
  /** Standard output is for the result of `--json`, so the command's output must go to standard error. */
  outputToStderr: boolean;
}

/**
 * Runs a command while the lease is held. Resolves with the command's exit code. If the lease is lost, ends the command
 * and all processes that it started.
 *
 * If this process is killed, the command keeps running, and its lease expires after its TTL. A resource that must be
 * protected even then has to check the fence (`COPILOTFLEET_LEASE_FENCE`).
 *
 * @throws FleetError `FLEET_LEASE_LOST` when the lease is lost, after the command has ended; the interrupt's reason
 * when the interrupt came before the command was started.
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
  // Forward signals before the first `await`, because a signal may arrive at any time from now on.
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
