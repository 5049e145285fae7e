/** The supervisor's operations on servers: one at a time for each server. At the end, the supervisor waits for all. */
export class Operations {
  readonly #running = new Map<string, Promise<void>>();
  readonly #onError: (what: string, server: string, error: unknown) => void;
  readonly #onSettled: () => void;

  /** `onSettled` is called after each operation, because another one may now begin on its server. */
  constructor(onError: (what: string, server: string, error: unknown) => void, onSettled: () => void) {
    this.#onError = onError;
    this.#onSettled = onSettled;
  }

  isBusy(server: string): boolean {
    return this.#running.has(server);
  }

  /** Begins `work` on the server, unless an operation is in progress there. `onError` receives a failure. */
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

  /** Resolves when no operation is in progress. */
  async settled(): Promise<void> {
    while (this.#running.size > 0) await Promise.all(this.#running.values());
  }
}
