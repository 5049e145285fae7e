import type { Config } from "../config/schema.js";
import { ChainWriter } from "../store/file/events/chain.js";
import type { EventsContext, Unnumbered } from "./events.js";
import { chain } from "./line.js";
import { Pseudonyms } from "./pseudonyms.js";

/** A segment has about this many bytes, unless the whole log may have only a few times as many. */
const SEGMENT_BYTES = 1024 * 1024;
const LEAST_SEGMENTS = 8;

/** The size at which a segment is complete, in bytes. */
export function segmentBytesOf({ maxBytes }: Pick<Config["events"], "maxBytes">): number {
  return Math.min(SEGMENT_BYTES, maxBytes / LEAST_SEGMENTS);
}

/** Writes events to the log of this host. */
export class EventWriter {
  readonly #chain: ChainWriter;
  readonly #pseudonyms: Pseudonyms;
  readonly #maxBytes: number;

  private constructor(writer: ChainWriter, pseudonyms: Pseudonyms, maxBytes: number) {
    this.#maxBytes = maxBytes;
    this.#chain = writer;
    this.#pseudonyms = pseudonyms;
  }

  static async open({ stateRoot, config, store, warn }: EventsContext): Promise<EventWriter> {
    const segmentBytes = segmentBytesOf(config.events);
    // If the store is away, the key that this host has is as good, because the log can be verified with each of its keys.
    const pseudonyms = await Pseudonyms.open(stateRoot, store).catch(async (error: unknown) => {
      const reason = error instanceof Error ? error.message : String(error);
      warn(`The audit log uses the key of pseudonyms of this host, because the fleet's key cannot be read: ${reason}`);
      return await Pseudonyms.open(stateRoot, {});
    });
    return new EventWriter(new ChainWriter(stateRoot, { segmentBytes }), pseudonyms, config.events.maxBytes);
  }

  async append(events: readonly Unnumbered[], options: { durable: boolean }): Promise<void> {
    await this.#chain.append((head) => chain(events, head, this.#pseudonyms.of), options);
  }

  async tidy(): Promise<void> {
    await this.#chain.tidy();
  }

  /** Whether the log has more bytes than `events.maxSize`. */
  isTooLong(): boolean {
    return this.#chain.bytes() > this.#maxBytes;
  }
}
