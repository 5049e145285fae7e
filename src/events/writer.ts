import { ChainWriter } from "../store/file/events/chain.js";
import type { EventsContext, Unnumbered } from "./events.js";
import { chain } from "./line.js";
import { Pseudonyms } from "./pseudonyms.js";

/** A segment has about this many bytes, unless the whole log may have only a few times as many. */
const SEGMENT_BYTES = 1024 * 1024;
const LEAST_SEGMENTS = 8;

/** Writes events to the log of this host. */
export class EventWriter {
  readonly #chain: ChainWriter;
  readonly #pseudonyms: Pseudonyms;

  private constructor(writer: ChainWriter, pseudonyms: Pseudonyms) {
    this.#chain = writer;
    this.#pseudonyms = pseudonyms;
  }

  static async open({ stateRoot, config }: Pick<EventsContext, "stateRoot" | "config">): Promise<EventWriter> {
    const segmentBytes = Math.min(SEGMENT_BYTES, config.events.maxBytes / LEAST_SEGMENTS);
    return new EventWriter(new ChainWriter(stateRoot, { segmentBytes }), await Pseudonyms.open(stateRoot));
  }

  async append(events: readonly Unnumbered[], options: { durable: boolean }): Promise<void> {
    await this.#chain.append((head) => chain(events, head, this.#pseudonyms.of), options);
  }

  async tidy(): Promise<void> {
    await this.#chain.tidy();
  }
}
