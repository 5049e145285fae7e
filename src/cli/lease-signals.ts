import { exitCodeOfSignal } from "../runtime/foreground.js";
import { Interrupted } from "./interrupted.js";

const FORWARDED = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"] as const;

/**
 * The signals of a command that runs another one: until that runs they end the wait, and from then on they are the other
 * one's, which decides what they mean.
 */
export class LeaseSignals implements Disposable {
  readonly #interrupt = new AbortController();
  readonly #listeners = FORWARDED.map((name) => [name, () => this.#receive(name)] as const);
  #forward: ((name: NodeJS.Signals) => void) | undefined;

  constructor() {
    for (const [name, listener] of this.#listeners) process.on(name, listener);
  }

  /** Aborts with an {@link Interrupted}. */
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
