const NAMES = ["SIGTERM", "SIGINT"] as const;

/** The signals that end `serve`. The first one drains, and a second one cuts the drain short. */
export class ServeSignals implements Disposable {
  readonly #first = new AbortController();
  readonly #second = new AbortController();
  readonly #listeners = NAMES.map((name) => [name, () => this.#receive(name)] as const);
  #name: NodeJS.Signals | undefined;

  constructor() {
    for (const [name, listener] of this.#listeners) process.on(name, listener);
  }

  /** Aborts when the first signal arrives. */
  get first(): AbortSignal {
    return this.#first.signal;
  }

  /** Aborts when a second signal arrives. */
  get second(): AbortSignal {
    return this.#second.signal;
  }

  /** The name of the first signal. */
  get name(): NodeJS.Signals | undefined {
    return this.#name;
  }

  #receive(name: NodeJS.Signals): void {
    if (this.#first.signal.aborted) {
      this.#second.abort();
      return;
    }
    this.#name = name;
    this.#first.abort(new Error(`the process received ${name}`));
  }

  [Symbol.dispose](): void {
    for (const [name, listener] of this.#listeners) process.off(name, listener);
  }
}
