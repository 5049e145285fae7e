import { closeSync, fsync, openSync, readFileSync, readSync, renameSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { closeQuietly, scratchName, writeNewFile } from "../file/commit/durable.js";
import type { SegmentFile } from "./segment-file.js";
import type { Segments } from "./segments.js";
import { CellTable, ROW, Sums, SumsBuilder, type SumsTables } from "./sums.js";

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
