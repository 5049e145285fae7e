import type { ServerResponse } from "node:http";
import type { Clock } from "../../runtime/clock.js";

/** How long a stream may be silent, in milliseconds. Proxies close connections that are silent for longer. */
const SILENCE_MS = 15_000;
/** How often to look for silent streams, in milliseconds. */
const LOOK_MS = 3_000;

/** Writes comments to silent streams, so that proxies do not close them. One timer serves all streams. */
export class Heartbeats {
  readonly #clock: Clock;
  /** When each stream was last written to. */
  readonly #writtenMs = new Map<ServerResponse, number>();
  #cancel: (() => void) | undefined;
  /** The number of events that were sent. */
  events = 0;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** The number of open streams. */
  get size(): number {
    return this.#writtenMs.size;
  }

  /** Begins to watch and to count a stream. */
  begin(response: ServerResponse): void {
    this.#touch(response);
    this.#cancel ??= this.#lookLater();
  }

  /** Records that events were written to the stream. */
  written(response: ServerResponse, events: number): void {
    this.events += events;
    this.#touch(response);
  }

  end(response: ServerResponse): void {
    this.#writtenMs.delete(response);
    if (this.#writtenMs.size > 0) return;
    this.#cancel?.();
    this.#cancel = undefined;
  }

  #touch(response: ServerResponse): void {
    this.#writtenMs.set(response, this.#clock.now());
  }

  #lookLater(): () => void {
    return this.#clock.after(LOOK_MS, () => {
      this.#cancel = this.#lookLater();
      const nowMs = this.#clock.now();
      for (const [response, writtenMs] of this.#writtenMs) {
        if (nowMs - writtenMs < SILENCE_MS - LOOK_MS) continue;
        this.#writtenMs.set(response, nowMs);
        // Skip a client that still has bytes to read: another comment would only add to them.
        if (response.writableLength === 0) response.write(":\n\n");
      }
    });
  }
}
