import { dayOf, hourStart, type UsageNumbers } from "../../model/usage/usage.js";
import type { Segments } from "./segments.js";
import type { SumsFiles } from "./sums.js";

/** Limits count at most a month. */
const LONGEST_MS = 32 * 24 * 3_600_000;

/** The tokens of each user on each day, kept up to date by reading only what is new in the segments. */
export class Tally {
  readonly #segments: Segments;
  readonly #sums: SumsFiles;
  readonly #users = new Map<string, Map<string, number>>();
  /** How far each segment has been read. */
  readonly #read = new Map<number, { end: number; ino: number }>();

  constructor(segments: Segments, sums: SumsFiles) {
    this.#segments = segments;
    this.#sums = sums;
  }

  tokensSince(user: string, day: string): number {
    this.#refresh();
    let tokens = 0;
    for (const [each, count] of this.#users.get(user) ?? []) if (each >= day) tokens += count;
    return tokens;
  }

  #refresh(): void {
    const numbers = this.#segments.numbers();
    for (const number of numbers.toReversed()) {
      const { size, ino } = this.#segments.stateOf(number);
      const known = this.#read.get(number);
      if (known !== undefined && known.ino !== ino) {
        // A purge has replaced the segment, so the offset of its next line is not known.
        this.#users.clear();
        this.#read.clear();
        this.#refresh();
        return;
      }
      const at = known?.end ?? this.#addSums(number);
      // Segments before one that is too old are even older.
      if (at === null) return;
      // A sealed segment that has been read to its end, and those before it, get no more lines.
      if (at === size && known !== undefined && number !== numbers.at(-1)) return;
      const { lines, end } = this.#segments.read(number, at);
      for (const line of lines) this.#add(line.user, dayOf(line.at), line);
      this.#read.set(number, { end, ino });
    }
  }

  /** @returns how far the sums go; null if the segment is too old for any limit */
  #addSums(number: number): number | null {
    const sums = this.#sums.read(number, "user");
    if (sums === null) return 0;
    const oldest = Date.now() - LONGEST_MS;
    if (sums.ranges.every(([hour]) => hourStart(hour + 1) < oldest)) return null;
    for (const [hour, , user, , , , inputTokens = null, outputTokens = null] of sums.rows)
      this.#add(user, dayOf(hourStart(hour)), { inputTokens, outputTokens });
    return sums.bytes;
  }

  #add(
    user: string,
    day: string,
    { inputTokens, outputTokens }: Pick<UsageNumbers, "inputTokens" | "outputTokens">,
  ): void {
    const tokens = (inputTokens ?? 0) + (outputTokens ?? 0);
    if (tokens === 0) return;
    const days = this.#users.get(user) ?? new Map<string, number>();
    this.#users.set(user, days.set(day, (days.get(day) ?? 0) + tokens));
  }
}
