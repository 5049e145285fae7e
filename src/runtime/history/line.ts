import { isObject } from "../../config/values/json.js";
import { type ScanLimits, scanWithin } from "../wire/scan.js";

/**
 * A longer line is not read as a whole by those who show a conversation, so that it does not fill the memory. The
 * longest prompt that the front door passes has 8 MB.
 */
export const LONGEST_LINE_BYTES = 16 * 1024 * 1024;
/**
 * By default, a line above this size (in bytes) is reduced to its first and last 4 KB, because a tool's output may have
 * megabytes that nobody needs.
 */
const WHOLE_BYTES = 1024 * 1024;
const END_BYTES = 4096;
const NEWLINE = 10;
const OPEN_BRACE = 0x7b;
/** No event is shorter, in bytes. */
const SHORTEST_BYTES = 48;
/** The parser of JSON takes a few milliseconds for a line of up to this size, in bytes, whatever it contains. */
const CHEAP_BYTES = 128 * 1024;
/** No event that the runtime writes exceeds these limits. */
const LIMITS: ScanLimits = { depth: 100, values: 100_000 };

/** A line without its newline. A line that is too long is reduced to its first and last 4 KB. */
export type Line = { whole: Buffer } | { head: Buffer; tail: Buffer };

/**
 * Parses a line of a history. Null if it is not a JSON object.
 *
 * The session's agent can write any line. An exception of `JSON.parse` takes about 10 µs, which is too long for a
 * history of empty lines, so obvious garbage is not parsed. Nor is a long line of very many values.
 */
export function parseLine(line: Buffer): Record<string, unknown> | null {
  if (line.length < SHORTEST_BYTES || line[0] !== OPEN_BRACE) return null;
  if (line.length > CHEAP_BYTES && scanWithin(line, LIMITS)?.over !== null) return null;
  try {
    const value: unknown = JSON.parse(line.toString("utf8"));
    return isObject(value) ? value : null;
  } catch {
    return null;
  }
}

/** A history of empty lines would otherwise make millions of buffers. */
const EMPTY: Line = { whole: Buffer.alloc(0) };

/** Splits pieces of any size into lines. The result does not depend on where the pieces were cut. */
export class LineSplitter {
  #parts: Buffer[] = [];
  #bytes = 0;
  #skipping: boolean;
  readonly #wholeBytes: number;

  /**
   * @param options.skipFirst Whether to leave out the text up to the first newline. Set this if reading begins inside a
   * line.
   * @param options.wholeBytes A line above this size is reduced to its first and last 4 KB. Default: a megabyte.
   */
  constructor(options: { skipFirst?: boolean; wholeBytes?: number } = {}) {
    this.#skipping = options.skipFirst === true;
    this.#wholeBytes = options.wholeBytes ?? WHOLE_BYTES;
  }

  *push(chunk: Buffer): Generator<Line> {
    let from = 0;
    for (let at = chunk.indexOf(NEWLINE); at !== -1; at = chunk.indexOf(NEWLINE, from)) {
      const line = at === from && this.#bytes === 0 ? EMPTY : this.#line(chunk.subarray(from, at));
      from = at + 1;
      if (!this.#skipping) yield line;
      this.#skipping = false;
    }
    if (!this.#skipping && from < chunk.length) this.#keep(chunk.subarray(from));
  }

  /**
   * Returns the text after the last newline: a line that is incomplete or still being written. Null if no text follows
   * the last newline, or if that text belongs to a first line that is left out.
   */
  end(): Line | null {
    return this.#bytes === 0 || this.#skipping ? null : this.#line(Buffer.alloc(0));
  }

  #line(end: Buffer): Line {
    const bytes = this.#bytes + end.length;
    const joined = this.#parts.length === 0 ? end : Buffer.concat([...this.#parts, end]);
    this.#parts = [];
    this.#bytes = 0;
    return bytes <= this.#wholeBytes ? { whole: joined } : endsOf(joined);
  }

  #keep(part: Buffer): void {
    // Copy the part, because a slice would keep the whole chunk in memory.
    this.#parts.push(Buffer.from(part));
    this.#bytes += part.length;
    if (this.#bytes <= this.#wholeBytes) return;
    const { head, tail } = endsOf(Buffer.concat(this.#parts));
    this.#parts = [Buffer.from(head), Buffer.from(tail)];
  }
}

function endsOf(line: Buffer): { head: Buffer; tail: Buffer } {
  return { head: line.subarray(0, END_BYTES), tail: line.subarray(-END_BYTES) };
}
