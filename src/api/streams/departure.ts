import type { ServerResponse } from "node:http";

/**
 * Provides a signal that aborts when the client disconnects before it has received the complete answer, or when the
 * signal `other` aborts. Dispose the object to remove its listeners.
 */
export class Departure implements Disposable {
  readonly #gone = new AbortController();
  readonly #response: ServerResponse;
  readonly #other: AbortSignal;

  constructor(response: ServerResponse, other: AbortSignal) {
    this.#response = response;
    this.#other = other;
    response.once("close", this.#onClose);
    other.addEventListener("abort", this.#onAbort, { once: true });
    if (other.aborted) this.#onAbort();
    if (response.destroyed) this.#onClose();
  }

  get signal(): AbortSignal {
    return this.#gone.signal;
  }

  [Symbol.dispose](): void {
    this.#response.off("close", this.#onClose);
    this.#other.removeEventListener("abort", this.#onAbort);
  }

  readonly #onAbort = () => this.#gone.abort(this.#other.reason);
  readonly #onClose = () => {
    if (!this.#response.writableFinished) this.#gone.abort(new Error("The client has gone."));
  };
}
