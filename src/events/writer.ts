import { ChainWriter } from "../store/file/events/chain.js";
import type { EventsContext, Unnumbered } from "./events.js";
import { chain } from "./line.js";
import { Pseudonyms } from "./pseudonyms.js";

/** The size of the audit log of a host, in bytes. Beyond it, the oldest events are deleted. */
export const LOG_BYTES = 256 * 1024 * 1024;
/** The size at which a segment is complete, in bytes. */
export const SEGMENT_BYTES = 1024 * 1024;
/**
 * If the store did not return the key of pseudonyms, how long to wait before asking it again, in milliseconds. Without
 * this pause, a short command would wait for the store a second time when it ends.
 */
const RETRY_MS = 10_000;

/** Writes events to the log of this host. */
export class EventWriter {
  readonly #chain: ChainWriter;
  readonly #context: EventsContext;
  #pseudonyms: Pseudonyms;
  /** When to try again to read the fleet's key, by `performance.now()`. Null if this writer has the key. */
  #readsKeyAt: number | null;

  private constructor(context: EventsContext, pseudonyms: Pseudonyms, hasKeyOfFleet: boolean) {
    this.#context = context;
    this.#chain = new ChainWriter(context.stateRoot, { segmentBytes: context.segmentBytes ?? SEGMENT_BYTES });
    this.#pseudonyms = pseudonyms;
    this.#readsKeyAt = hasKeyOfFleet ? null : performance.now() + RETRY_MS;
  }

  static async open(context: EventsContext): Promise<EventWriter> {
    const { stateRoot, store, warn } = context;
    try {
      return new EventWriter(context, await Pseudonyms.open(stateRoot, store), true);
    } catch (error) {
      // If the store cannot be reached, use this host's own key, because the log can be verified with any of the host's
      // keys.
      const reason = error instanceof Error ? error.message : String(error);
      warn(`The audit log uses the key of pseudonyms of this host, because the fleet's key cannot be read: ${reason}`);
      return new EventWriter(context, await Pseudonyms.open(stateRoot, {}), false);
    }
  }

  async append(events: readonly Unnumbered[], options: { durable: boolean }): Promise<void> {
    await this.#chain.append((head) => chain(events, head, this.#pseudonyms.of), options);
    // Do not await this, because events must not wait for a store that cannot be reached.
    if (this.#readsKeyAt !== null && performance.now() >= this.#readsKeyAt) void this.#readKeyOfFleet();
  }

  async #readKeyOfFleet(): Promise<void> {
    const { stateRoot, store } = this.#context;
    this.#readsKeyAt = performance.now() + RETRY_MS;
    try {
      this.#pseudonyms = await Pseudonyms.open(stateRoot, store);
      this.#readsKeyAt = null;
    } catch {
      // A later write tries again.
    }
  }

  async tidy(): Promise<void> {
    await this.#chain.tidy();
  }

  /** Whether the log has more bytes than it may have. */
  isTooLong(): boolean {
    return this.#chain.bytes() > LOG_BYTES;
  }
}
