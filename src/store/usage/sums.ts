import {
  countsOf,
  dayOf,
  keyOf,
  type LedgerLine,
  plus,
  USAGE_COUNTS,
  type UsageBy,
  type UsageParts,
  type UsageQuery,
} from "../../model/usage/usage.js";
import type { Piece } from "./segment-file.js";

/** Lines are added up by these times, in milliseconds. */
const BUCKET_MS = 10 * 60_000;

type Cell = [user: string, sessionId: string, model: string | null, tokenId: string | null];

/** A time whose lines are added up. */
export interface Bucket {
  number: number;
  /** The times of the first and of the last line, in milliseconds since the epoch. */
  first: number;
  last: number;
  /** The parts of the segment that contain all of its lines. */
  ranges: [from: number, to: number][];
}

export interface SumsTables {
  cells: Cell[];
  buckets: Bucket[];
}

/** The length of a row: the index of the bucket, the index of the cell, and the counts. A count that nobody reported is NaN. */
export const ROW = 2 + USAGE_COUNTS.length;

/** The sums of the first `bytes` bytes of a segment. Several rows may have the same bucket and the same cell. */
export class Sums implements SumsTables {
  readonly bytes: number;
  readonly cells: Cell[];
  readonly buckets: Bucket[];
  readonly rows: Float64Array;

  constructor({ bytes, cells, buckets, rows }: SumsTables & { bytes: number; rows: Float64Array }) {
    this.bytes = bytes;
    this.cells = cells;
    this.buckets = buckets;
    this.rows = rows;
  }

  get first(): number | null {
    return this.buckets.length === 0 ? null : Math.min(...this.buckets.map(({ first }) => first));
  }

  get last(): number | null {
    return this.buckets.length === 0 ? null : Math.max(...this.buckets.map(({ last }) => last));
  }

  /**
   * Adds the buckets of which the query wants all lines.
   *
   * @returns the buckets of which it wants only a part
   */
  addTo(parts: UsageParts, { by, from, to }: UsageQuery): Bucket[] {
    const isWhole = this.buckets.map(({ first, last }) => first >= from && last < to);
    const days = this.buckets.map(({ number }) => (by === "day" ? dayOf(number * BUCKET_MS) : ""));
    const places = new Map(days.map((day) => [day, new Array<number | null | undefined>(this.cells.length)]));
    const placesOf = days.map((day, bucket) => (isWhole[bucket] === true ? places.get(day) : undefined));
    const { counts } = parts;
    for (let at = 0; at < this.rows.length; at += ROW) {
      const bucket = this.#at(at);
      const known = placesOf[bucket];
      if (known === undefined) continue;
      const cell = this.#at(at + 1);
      let place = known[cell];
      if (place === undefined) {
        place = this.#placeIn(parts, cell, { by, day: days[bucket] ?? "" });
        known[cell] = place;
      }
      if (place === null) continue;
      for (let index = 0; index < USAGE_COUNTS.length; index++)
        counts[place + index] = plus(counts[place + index], this.#at(at + 2 + index));
    }
    return this.buckets.filter(({ first, last }, index) => isWhole[index] !== true && last >= from && first < to);
  }

  #placeIn(parts: UsageParts, index: number, { by, day }: { by: UsageBy; day: string }): number | null {
    const cell = this.cells[index];
    if (cell === undefined) return null;
    const [user, sessionId, model, tokenId] = cell;
    return parts.placeOf(keyOf({ user, sessionId, model, tokenId, at: day }, by), user, model);
  }

  /** The input and output tokens of users, by day. */
  *tokens(): Generator<{ user: string; day: string; tokens: number }> {
    const days = this.buckets.map(({ number }) => dayOf(number * BUCKET_MS));
    const input = 2 + USAGE_COUNTS.indexOf("inputTokens");
    const output = 2 + USAGE_COUNTS.indexOf("outputTokens");
    for (let at = 0; at < this.rows.length; at += ROW) {
      const user = this.cells[this.#at(at + 1)]?.[0];
      const day = days[this.#at(at)];
      const tokens = plus(this.#at(at + input), this.#at(at + output));
      if (user !== undefined && day !== undefined && tokens > 0) yield { user, day, tokens };
    }
  }

  #at(index: number): number {
    return this.rows[index] ?? Number.NaN;
  }
}

/** Adds lines to the sums of the lines before them. */
export class SumsBuilder {
  readonly #before: Float64Array;
  readonly #cells: Cell[];
  readonly #cellIndex = new Map<string, number>();
  readonly #buckets: Bucket[];
  readonly #bucketIndex = new Map<number, number>();
  readonly #rowIndex = new Map<number, number>();
  readonly #rows: number[] = [];
  #bytes: number;

  constructor(before: Sums | null) {
    this.#before = before?.rows ?? new Float64Array();
    this.#cells = before?.cells ?? [];
    this.#buckets = before?.buckets ?? [];
    this.#bytes = before?.bytes ?? 0;
    for (const [index, cell] of this.#cells.entries()) this.#cellIndex.set(nameOf(cell), index);
    for (const [index, { number }] of this.#buckets.entries()) this.#bucketIndex.set(number, index);
  }

  add({ lines, from, end }: Piece): void {
    for (const line of lines) {
      const at = Date.parse(line.at);
      const bucket = this.#bucketAt(at);
      const own = this.#buckets[bucket];
      if (own === undefined) continue;
      own.first = Math.min(own.first, at);
      own.last = Math.max(own.last, at);
      const range = own.ranges.at(-1);
      if (range === undefined || range[1] < from) own.ranges.push([from, end]);
      else range[1] = end;
      this.#addRow(bucket, line);
    }
    this.#bytes = end;
  }

  build(): Sums {
    const rows = new Float64Array(this.#before.length + this.#rows.length);
    rows.set(this.#before);
    rows.set(this.#rows, this.#before.length);
    return new Sums({ bytes: this.#bytes, cells: this.#cells, buckets: this.#buckets, rows });
  }

  #addRow(bucket: number, line: LedgerLine): void {
    const cell = this.#cellOf(line);
    // Both are far below 2^26, so each pair has its own number.
    const name = bucket * 2 ** 26 + cell;
    let at = this.#rowIndex.get(name);
    if (at === undefined) {
      at = this.#rows.push(bucket, cell, ...USAGE_COUNTS.map(() => Number.NaN)) - USAGE_COUNTS.length;
      this.#rowIndex.set(name, at);
    }
    const counts = countsOf(line);
    for (const [index, count] of USAGE_COUNTS.entries())
      this.#rows[at + index] = plus(this.#rows[at + index], counts[count] ?? Number.NaN);
  }

  #bucketAt(at: number): number {
    const number = Math.floor(at / BUCKET_MS);
    let index = this.#bucketIndex.get(number);
    if (index === undefined) {
      index = this.#buckets.push({ number, first: at, last: at, ranges: [] }) - 1;
      this.#bucketIndex.set(number, index);
    }
    return index;
  }

  #cellOf({ user, sessionId, model, tokenId }: LedgerLine): number {
    const cell: Cell = [user, sessionId, model, tokenId];
    const name = nameOf(cell);
    let index = this.#cellIndex.get(name);
    if (index === undefined) {
      index = this.#cells.push(cell) - 1;
      this.#cellIndex.set(name, index);
    }
    return index;
  }
}

function nameOf([user, sessionId, model, tokenId]: Cell): string {
  return `${user}\0${sessionId}\0${model ?? "\u0001"}\0${tokenId ?? "\u0001"}`;
}
