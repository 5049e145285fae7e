import type { ServeContext } from "./context.js";
import { logFailure } from "./failures.js";
import type { LoopTimer } from "./loop-timer.js";

/** Runs the supervisor's operations on servers, at most one at a time for each server. */
export class Operations {
  readonly #context: Pick<ServeContext, "log" | "metrics">;
  readonly #timer: LoopTimer;
  readonly #stopping: AbortSignal;
  readonly #running = new Map<string, Promise<void>>();

  constructor(context: Pick<ServeContext, "log" | "metrics">, timer: LoopTimer, stopping: AbortSignal) {
    this.#context = context;
    this.#timer = timer;
    this.#stopping = stopping;
  }

  isBusy(server: string): boolean {
    return this.#running.has(server);
  }

  /**
   * Begins `work` on a server, unless another operation on that server is in progress.
   *
   * @param failure the text to log after the server's id if `work` fails, such as "it could not be stopped"
   */
  begin(failure: string, server: string, work: () => Promise<void>): void {
    if (this.#running.has(server)) return;
    const running = work()
      .catch((error: unknown) => this.#report(failure, server, error))
      .finally(() => {
        this.#running.delete(server);
        this.#timer.wake();
      });
    this.#running.set(server, running);
  }

  #report(failure: string, server: string, error: unknown): void {
    const message = `server ${server}: ${failure}`;
    // An operation that the end of `serve` cancelled has not failed.
    if (this.#stopping.aborted)
      this.#context.log("info", `${message}, because serve is ending`, { server, error: String(error) });
    else logFailure(this.#context, message, error, { server });
  }

  /** Resolves when no operation is in progress. */
  async settled(): Promise<void> {
    while (this.#running.size > 0) await Promise.all(this.#running.values());
  }
}
