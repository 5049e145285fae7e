import { abortable } from "../../runtime/deadline.js";
import { exitCodeOfSignal, ForegroundCommand } from "../../runtime/launch/foreground.js";
import { type HeldLease, LEASE_VARIABLES } from "../../sessions/leases/leases.js";
import { Interrupted } from "../prompt/interrupted.js";

const FORWARDED = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"] as const;
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

/**
 * Handles the signals of `lock` with a COMMAND. Until COMMAND runs, a signal ends the wait for the lease. From then on,
 * signals are forwarded to COMMAND, which decides how to react.
 */
export class LeaseSignals implements Disposable {
  readonly #interrupt = new AbortController();
  readonly #listeners = FORWARDED.map((name) => [name, () => this.#receive(name)] as const);
  #forward: ((name: NodeJS.Signals) => void) | undefined;

  constructor() {
    for (const [name, listener] of this.#listeners) process.on(name, listener);
  }

  /** Aborts with an {@link Interrupted} when a signal arrives before the command runs. */
  get interrupt(): AbortSignal {
    return this.#interrupt.signal;
  }

  forwardTo(forward: (name: NodeJS.Signals) => void): void {
    this.#forward = forward;
  }

  #receive(name: NodeJS.Signals): void {
    if (this.#forward !== undefined) this.#forward(name);
    else this.#interrupt.abort(new Interrupted(exitCodeOfSignal(name)));
  }

  [Symbol.dispose](): void {
    for (const [name, listener] of this.#listeners) process.off(name, listener);
  }
}
