import { dayOf, type LedgerLine } from "../../model/usage/usage.js";
import type { SegmentFile } from "./segment-file.js";
import type { Segments } from "./segments.js";
import type { SumsFiles } from "./sums-files.js";

/** No limit counts tokens of more than a month, so tokens older than this do not matter. In milliseconds. */
const LONGEST_MS = 32 * 24 * 3_600_000;

/** The tokens of each user on each day, kept up to date by reading only what is new in the segments. */
export class Tally {
  readonly #segments: Segments;
  readonly #sums: SumsFiles;
  readonly #users = new Map<string, Map<string, number>>();
  /** How far each segment has been read, in bytes. */
  readonly #read = new Map<number, { end: number; id: string }>();
  #refreshed: Promise<void> = Promise.resolve();

  constructor(segments: Segments, sums: SumsFiles) {
    this.#segments = segments;
    this.#sums = sums;
  }

  async tokensSince(user: string, day: string): Promise<number> {
    // Run one refresh after the other, so that no line is counted twice.
    this.#refreshed = this.#refreshed.catch(() => undefined).then(async () => await this.#refresh());
    await this.#refreshed;
    let tokens = 0;
    for (const [each, count] of this.#users.get(user) ?? []) if (each >= day) tokens += count;
    return tokens;
  }

  async #refresh(): Promise<void> {
    try {
      await this.#readNew();
    } catch (error) {
      // Start over. Otherwise the next refresh might stop at a segment that was read, and skip older, unread segments.
      this.#forget();
      throw error;
    }
  }

  #forget(): void {
    this.#users.clear();
    this.#read.clear();
  }

  async #readNew(): Promise<void> {
    const numbers = this.#segments.numbers();
    for (const number of numbers.toReversed()) {
      const isNewest = number === numbers.at(-1);
      const step = await this.#segments.using(number, async (file) => await this.#add(number, file, isNewest));
      if (step === "replaced") {
        // Start over, because it is not known where the first unread line is in the new file.
        this.#forget();
        await this.#readNew();
        return;
      }
      if (step === "last") return;
    }
  }

  /**
   * Adds the tokens in the new lines of a segment.
   *
   * @returns `last` if the earlier segments have nothing to add; `replaced` if a purge has replaced this segment
   */
  async #add(number: number, segment: SegmentFile, isNewest: boolean): Promise<"next" | "last" | "replaced"> {
    const known = this.#read.get(number);
    if (known !== undefined && known.id !== segment.id) return "replaced";
    // A sealed segment that has been read to its end gets no more lines, and neither do the segments before it.
    if (known?.end === segment.size && !isNewest) return "last";
    const at = known?.end ?? (await this.#addSums(number, segment, isNewest));
    // This segment is too old for any limit, so the segments before it are, too.
    if (at === null) return "last";
    const { id } = segment;
    this.#read.set(number, { end: at, id });
    for (const { lines, end } of segment.pieces(at)) {
      for (const line of lines) this.#addTokens(line.user, dayOf(line.at), tokensOf(line));
      this.#read.set(number, { end, id });
      // Adding up many lines takes seconds, so let the process do other work in between.
      await new Promise(setImmediate);
    }
    return "next";
  }

  /** Adds the tokens in a segment's sums. @returns how many bytes these cover; null if it is too old for any limit */
  async #addSums(number: number, segment: SegmentFile, isNewest: boolean): Promise<number | null> {
    await this.#sums.extend(number, segment, { isNewest });
    const head = this.#sums.head(number, segment);
    const last = head?.last ?? null;
    if (last !== null && last < Date.now() - LONGEST_MS) return null;
    const sums = this.#sums.read(number, segment);
    for (const { user, day, tokens } of sums?.tokens() ?? []) this.#addTokens(user, day, tokens);
    return sums?.end ?? 0;
  }

  #addTokens(user: string, day: string, tokens: number): void {
    if (tokens === 0) return;
    const days = this.#users.get(user) ?? new Map<string, number>();
    this.#users.set(user, days.set(day, (days.get(day) ?? 0) + tokens));
  }
}

function tokensOf({ inputTokens, outputTokens }: LedgerLine): number {
  return (inputTokens ?? 0) + (outputTokens ?? 0);
}
