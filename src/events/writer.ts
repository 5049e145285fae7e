import type { Config } from "../config/schema.js";
import { ChainWriter } from "../store/file/events/chain.js";
import type { EventsContext, Unnumbered } from "./events.js";
import { chain } from "./line.js";
import { Pseudonyms } from "./pseudonyms.js";

/** A segment has about this many bytes, unless the whole log may have only a few times as many. */
const SEGMENT_BYTES = 1024 * 1024;
const LEAST_SEGMENTS = 8;
/**
 * How long to leave a store alone that did not give the key of pseudonyms, in milliseconds. Otherwise a short command would wait for it
 * again at its end.
 */
const RETRY_MS = 10_000;

/** The size at which a segment is complete, in bytes. */
export function segmentBytesOf({ maxBytes }: Pick<Config["events"], "maxBytes">): number {
  return Math.min(SEGMENT_BYTES, maxBytes / LEAST_SEGMENTS);
}

/** Writes events to the log of this host. */
export class EventWriter {
  readonly #chain: ChainWriter;
  readonly #context: EventsContext;
  #pseudonyms: Pseudonyms;
  /** When to read the key of the fleet, by `performance.now()`. Null if this writer has it. */
  #readsKeyAt: number | null;

  private constructor(context: EventsContext, pseudonyms: Pseudonyms, hasKeyOfFleet: boolean) {
    this.#context = context;
    this.#chain = new ChainWriter(context.stateRoot, { segmentBytes: segmentBytesOf(context.config.events) });
    this.#pseudonyms = pseudonyms;
    this.#readsKeyAt = hasKeyOfFleet ? null : performance.now() + RETRY_MS;
  }

  static async open(context: EventsContext): Promise<EventWriter> {
    const { stateRoot, store, warn } = context;
    try {
      return new EventWriter(context, await Pseudonyms.open(stateRoot, store), true);
    } catch (error) {
      // If the store is away, the key that this host has is as good, because the log can be verified with each of its keys.
      const reason = error instanceof Error ? error.message : String(error);
      warn(`The audit log uses the key of pseudonyms of this host, because the fleet's key cannot be read: ${reason}`);
      return new EventWriter(context, await Pseudonyms.open(stateRoot, {}), false);
    }
  }

  async append(events: readonly Unnumbered[], options: { durable: boolean }): Promise<void> {
    await this.#chain.append((head) => chain(events, head, this.#pseudonyms.of), options);
    // The events do not wait for a store that is away.
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

  /** Whether the log has more bytes than `events.maxSize`. */
  isTooLong(): boolean {
    return this.#chain.bytes() > this.#context.config.events.maxBytes;
  }
}
