import { closeSync, fsync, openSync, readFileSync, readSync, renameSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
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
} from "../../base/usage.js";
import { closeQuietly, scratchName, writeNewFile } from "../file/durable.js";
import type { Piece, SegmentFile, Segments } from "./segments.js";

/** The default length of a bucket, in milliseconds. */
const BUCKET_MS = 10 * 60_000;

/** A combination of values. The counts of all lines with these values are added up. */
export type Cell = [user: string, sessionId: string, model: string | null, tokenId: string | null];

/** A period whose lines are added up together. It lies within one day (UTC). */
export interface Bucket {
  /** The number of the period, counted from the epoch. */
  number: number;
  /** The times of the first and of the last line, in milliseconds since the epoch. */
  first: number;
  last: number;
  /** The parts of the segment (in bytes), or of the hour's list in Redis (in lines), with all lines of the bucket. */
  ranges: [from: number, to: number][];
}

interface SumsTables {
  /** Each {@link Cell} as JSON. */
  cells: string[];
  buckets: Bucket[];
}

/** The length of a row: the index of the bucket, the index of the cell, and the counts. A count that nobody reported is NaN. */
export const ROW = 2 + USAGE_COUNTS.length;

/** The sums of the first lines of a segment or of an hour in Redis. Several rows may have the same bucket and cell. */
export class Sums implements SumsTables {
  /** How many bytes of the segment, or how many lines of the hour, are added up. */
  readonly end: number;
  readonly cells: string[];
  readonly buckets: Bucket[];
  readonly rows: Float64Array;

  constructor({ end, cells, buckets, rows }: SumsTables & { end: number; rows: Float64Array }) {
    this.end = end;
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

  /** The buckets that the query covers only partly. */
  partly(query: UsageQuery): Bucket[] {
    const { from, to } = query;
    return this.buckets.filter((bucket) => bucket.last >= from && bucket.first < to && !isWhole(bucket, query));
  }

  /** Adds to `parts` the counts of those buckets that the query covers completely. */
  addTo(parts: UsageParts, query: UsageQuery): void {
    const days = this.buckets.map(({ first }) => (query.by === "day" ? dayOf(first) : ""));
    const placesOf = this.buckets.map((bucket, index) =>
      isWhole(bucket, query) ? parts.placesOf(this.cells, days[index] ?? "") : undefined,
    );
    const { counts } = parts;
    for (let at = 0; at < this.rows.length; at += ROW) {
      const [bucket, cell] = [this.#at(at), this.#at(at + 1)];
      const known = placesOf[bucket];
      if (known === undefined) continue;
      let place = known[cell];
      if (place === undefined) {
        place = this.#placeIn(parts, cell, { by: query.by, day: days[bucket] ?? "" });
        known[cell] = place;
      }
      if (place === null) continue;
      for (let index = 0; index < USAGE_COUNTS.length; index++)
        counts[place + index] = plus(counts[place + index], this.#at(at + 2 + index));
    }
  }

  #placeIn(parts: UsageParts, index: number, { by, day }: { by: UsageBy; day: string }): number | null {
    const [user, sessionId, model, tokenId] = JSON.parse(this.cells[index] ?? "") as Cell;
    return parts.placeOf(keyOf({ user, sessionId, model, tokenId, at: day }, by), user, model);
  }

  /** The input and output tokens of users, by day. */
  *tokens(): Generator<{ user: string; day: string; tokens: number }> {
    const days = this.buckets.map(({ first }) => dayOf(first));
    const users = this.cells.map((cell) => (JSON.parse(cell) as Cell)[0]);
    const input = 2 + USAGE_COUNTS.indexOf("inputTokens");
    const output = 2 + USAGE_COUNTS.indexOf("outputTokens");
    for (let at = 0; at < this.rows.length; at += ROW) {
      const user = users[this.#at(at + 1)];
      const day = days[this.#at(at)];
      const tokens = plus(this.#at(at + input), this.#at(at + output));
      if (user !== undefined && day !== undefined && tokens > 0) yield { user, day, tokens };
    }
  }

  #at(index: number): number {
    return this.rows[index] ?? Number.NaN;
  }
}

/** Gives each cell a number, by which the rows of sums refer to it. Several sums may share one table. */
export class CellTable {
  readonly cells: string[];
  readonly #index = new Map<string, number>();

  /** @param cells the cells so far. {@link numberOf} appends new cells to this array. */
  constructor(cells: string[]) {
    this.cells = cells;
    for (const [index, cell] of cells.entries()) this.#index.set(cell, index);
  }

  numberOf({ user, sessionId, model, tokenId }: LedgerLine): number {
    const cell = JSON.stringify([user, sessionId, model, tokenId] satisfies Cell);
    let number = this.#index.get(cell);
    if (number === undefined) {
      number = this.cells.push(cell) - 1;
      this.#index.set(cell, number);
    }
    return number;
  }
}

/** Builds sums: starts with the sums of earlier lines, if there are any, and adds lines to them. */
export class SumsBuilder {
  readonly #before: Float64Array;
  readonly #table: CellTable;
  readonly #buckets: Bucket[];
  readonly #bucketIndex = new Map<number, number>();
  readonly #rowIndex = new Map<number, number>();
  readonly #rows: number[] = [];
  readonly #bucketMs: number;
  #end: number;

  /**
   * @param table contains the cells of `before`
   * @param bucketMs the length of a bucket, in milliseconds. A day must consist of whole buckets.
   * @param merges whether to add lines to the rows of `before` instead of to new rows. This makes the sums smaller, but
   *   the builder then reads every row of `before`.
   */
  constructor(before: Sums | null, table: CellTable, { bucketMs = BUCKET_MS, merges = false } = {}) {
    const rows = before?.rows ?? new Float64Array();
    this.#before = merges ? new Float64Array() : rows;
    this.#table = table;
    this.#buckets = before?.buckets ?? [];
    this.#bucketMs = bucketMs;
    this.#end = before?.end ?? 0;
    for (const [index, { number }] of this.#buckets.entries()) this.#bucketIndex.set(number, index);
    if (merges) this.#takeRows(rows);
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
    this.#end = end;
  }

  build(): Sums {
    const rows = new Float64Array(this.#before.length + this.#rows.length);
    rows.set(this.#before);
    rows.set(this.#rows, this.#before.length);
    return new Sums({ end: this.#end, cells: this.#table.cells, buckets: this.#buckets, rows });
  }

  #takeRows(rows: Float64Array): void {
    for (let at = 0; at < rows.length; at += ROW) {
      const row = rows.subarray(at, at + ROW);
      const [bucket = 0, cell = 0] = row;
      this.#rowIndex.set(rowName(bucket, cell), this.#rows.push(...row) - USAGE_COUNTS.length);
    }
  }

  #addRow(bucket: number, line: LedgerLine): void {
    const cell = this.#table.numberOf(line);
    const name = rowName(bucket, cell);
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
    const number = Math.floor(at / this.#bucketMs);
    let index = this.#bucketIndex.get(number);
    if (index === undefined) {
      index = this.#buckets.push({ number, first: at, last: at, ranges: [] }) - 1;
      this.#bucketIndex.set(number, index);
    }
    return index;
  }
}

function isWhole({ first, last }: Bucket, { from, to }: UsageQuery): boolean {
  return first >= from && last < to;
}

/** A number for a pair of bucket and cell. Both indexes are far below 2^26, so no two pairs have the same number. */
function rowName(bucket: number, cell: number): number {
  return bucket * 2 ** 26 + cell;
}

/** The sums of the newest segment may leave out up to this many bytes at its end, because reading these is fast. */
const LAG_BYTES = 1024 * 1024;
/** The first line of a sums file is shorter than this, in bytes. */
const HEAD_BYTES = 256;
/** The format of sums files. Files of another format are made again. */
const FORMAT = 2;
const NUMBER_BYTES = Float64Array.BYTES_PER_ELEMENT;

const syncToDisk = promisify(fsync);

/** The first line of a sums file. The tables follow as JSON, then the rows as 8-byte numbers in native byte order. */
interface Head {
  format: typeof FORMAT;
  /** The {@link SegmentFile.id} of the segment that was added up. */
  id: string;
  /** How many bytes of the segment were added up. */
  bytes: number;
  /** The times of the first and of the last line, in milliseconds since the epoch; null if there are no lines. */
  first: number | null;
  last: number | null;
  /** The length of the tables, in bytes. */
  tables: number;
  rows: number;
}

/**
 * A file of sums beside each segment, so that readers need not read all lines. It can be made again from the lines at
 * any time. If it is missing or damaged, or belongs to a segment that a purge has replaced, readers use the lines.
 */
export class SumsFiles {
  readonly #segments: Segments;
  readonly #extending = new Map<number, Promise<void>>();

  constructor(segments: Segments) {
    this.#segments = segments;
  }

  /** The head of a segment's sums; null if there are no sums, or if they cannot be read. */
  head(number: number, segment: SegmentFile): Head | null {
    try {
      return headIn(readStart(this.#segments.sumsPathOf(number)), segment);
    } catch {
      return null;
    }
  }

  /** The sums of a segment; null if there are none, or if they cannot be read. */
  read(number: number, segment: SegmentFile): Sums | null {
    try {
      const file = readFileSync(this.#segments.sumsPathOf(number));
      const head = headIn(file, segment);
      if (head === null) return null;
      const tables = file.indexOf(0x0a) + 1;
      const rows = tables + head.tables;
      const { cells, buckets } = JSON.parse(file.toString("utf8", tables, rows)) as SumsTables;
      const numbers = new Float64Array(file.buffer, file.byteOffset + rows, (file.length - rows) / NUMBER_BYTES);
      return numbers.length === head.rows * ROW ? new Sums({ end: head.bytes, cells, buckets, rows: numbers }) : null;
    } catch {
      return null;
    }
  }

  /** Adds up a segment's new lines if they are many. Ignores failures, because readers can use the lines instead. */
  async extend(number: number, segment: SegmentFile, { isNewest }: { isNewest: boolean }): Promise<void> {
    const lag = isNewest ? LAG_BYTES : 0;
    const isBehind = () => segment.size - (this.head(number, segment)?.bytes ?? 0) > lag;
    if (!isBehind()) return;
    await this.#extending.get(number);
    if (!isBehind()) return;
    const extended = this.#extend(number, segment)
      .catch(() => undefined)
      .finally(() => this.#extending.delete(number));
    this.#extending.set(number, extended);
    await extended;
  }

  async #extend(number: number, segment: SegmentFile): Promise<void> {
    const before = this.read(number, segment);
    const builder = new SumsBuilder(before, new CellTable(before?.cells ?? []));
    for (const piece of segment.pieces(before?.end)) {
      builder.add(piece);
      // Adding up many lines takes seconds, so let the process do other work in between.
      await new Promise(setImmediate);
    }
    const sums = builder.build();
    if (sums.end === before?.end || this.#isReplaced(number, segment.ino)) return;
    // Sync the segment first. Otherwise, after a power failure, the sums could include lines that the segment lacks.
    await syncToDisk(segment.fd);
    const tables = Buffer.from(JSON.stringify({ cells: sums.cells, buckets: sums.buckets } satisfies SumsTables));
    const { end, first, last } = sums;
    const head: Head = {
      format: FORMAT,
      id: segment.id,
      bytes: end,
      first,
      last,
      tables: tables.length,
      rows: sums.rows.length / ROW,
    };
    const temp = join(this.#segments.folder, scratchName("tmp"));
    closeQuietly(await writeNewFile(temp, Buffer.concat([headLine(head), tables, Buffer.from(sums.rows.buffer)])));
    renameSync(temp, this.#segments.sumsPathOf(number));
    // The sums contain names that a purge may have replaced during the write.
    if (this.#isReplaced(number, segment.ino)) this.remove(number);
  }

  #isReplaced(number: number, ino: number): boolean {
    return statSync(this.#segments.pathOf(number), { throwIfNoEntry: false })?.ino !== ino;
  }

  remove(number: number): void {
    rmSync(this.#segments.sumsPathOf(number), { force: true });
  }
}

function readStart(path: string): Buffer {
  const fd = openSync(path, "r");
  try {
    const bytes = Buffer.alloc(HEAD_BYTES);
    return bytes.subarray(0, readSync(fd, bytes, 0, HEAD_BYTES, 0));
  } finally {
    closeSync(fd);
  }
}

/** The head, padded with spaces so that the rows begin at a multiple of 8 bytes. */
function headLine(head: Head): Buffer {
  const text = JSON.stringify(head);
  const end = text.length + 1 + head.tables;
  return Buffer.from(`${text}${" ".repeat((NUMBER_BYTES - (end % NUMBER_BYTES)) % NUMBER_BYTES)}\n`);
}

/** Parses the head of a sums file; null if it has another format or another segment's id. @throws if it is damaged */
function headIn(file: Buffer, segment: SegmentFile): Head | null {
  const head = JSON.parse(file.toString("utf8", 0, file.indexOf(0x0a))) as Head;
  return head.format === FORMAT && head.id === segment.id && head.bytes <= segment.size ? head : null;
}
