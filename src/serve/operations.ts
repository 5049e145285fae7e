/** What the supervisor does to servers at the moment: one thing at a time to each, and all of it is waited for at the end. */
export class Operations {
  readonly #running = new Map<string, Promise<void>>();
  readonly #onError: (what: string, server: string, error: unknown) => void;
  readonly #onSettled: () => void;

  /** `onSettled` is called after each one, when something else may begin on its server. */
  constructor(onError: (what: string, server: string, error: unknown) => void, onSettled: () => void) {
    this.#onError = onError;
    this.#onSettled = onSettled;
  }

  isBusy(server: string): boolean {
    return this.#running.has(server);
  }

  /** Begins `work` on the server, unless something is under way there. A failure is told to `onError`. */
  begin(what: string, server: string, work: () => Promise<void>): void {
    if (this.#running.has(server)) return;
    const running = work()
      .catch((error: unknown) => this.#onError(what, server, error))
      .finally(() => {
        this.#running.delete(server);
        this.#onSettled();
      });
    this.#running.set(server, running);
  }

  /** Resolves when nothing is under way any more. */
  async settled(): Promise<void> {
    while (this.#running.size > 0) await Promise.all(this.#running.values());
  }
}
