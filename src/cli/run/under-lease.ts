import { abortable } from "../../base/clock.js";
import { ForegroundCommand } from "../../runtime/launch/foreground.js";
import { type HeldLease, LEASE_VARIABLES } from "../../sessions/leases.js";
import { Interrupted, onSignals } from "../prompt.js";

const FORWARDED = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"] as const;
/** How long the command may take to end after SIGTERM when the lease is lost, in milliseconds. */
const GRACE_MS = 5_000;

/**
 * Runs a command while the lease is held. Resolves with the command's exit code. If the lease is lost, ends the command
 * and all processes that it started, and rejects.
 *
 * If this process is killed, the command keeps running, but the lease expires after its TTL. A resource that must be
 * protected even then has to check the fence (`COPILOTFLEET_LEASE_FENCE`).
 */
export async function runUnderLease(
  command: readonly string[],
  lease: HeldLease,
  { signals, outputToStderr }: { signals: LeaseSignals; outputToStderr: boolean },
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

/**
 * Handles the signals that `lock` receives. Until COMMAND runs, a signal ends the wait for the lease. From then on,
 * signals are forwarded to COMMAND, which decides how to react.
 */
export class LeaseSignals implements Disposable {
  readonly #interrupt = new AbortController();
  readonly #handler = onSignals(FORWARDED, (name) => this.#receive(name));
  #forward: ((name: NodeJS.Signals) => void) | undefined;
  readonly interrupt: AbortSignal = this.#interrupt.signal;

  forwardTo(forward: (name: NodeJS.Signals) => void): void {
    this.#forward = forward;
  }

  #receive(name: NodeJS.Signals): void {
    if (this.#forward !== undefined) this.#forward(name);
    else this.#interrupt.abort(new Interrupted(name));
  }

  [Symbol.dispose](): void {
    this.#handler[Symbol.dispose]();
  }
}
