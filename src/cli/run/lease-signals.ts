import { exitCodeOfSignal } from "../../runtime/launch/foreground.js";
import { Interrupted } from "../prompt/interrupted.js";

const FORWARDED = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"] as const;

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
