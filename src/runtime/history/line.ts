import { fstatSync, type Stats } from "node:fs";
import { setImmediate as yieldToOthers } from "node:timers/promises";
import { FleetError, quote } from "../../base/errors.js";
import { readAt } from "../../base/if-there.js";
import { isObject } from "../../base/values/text.js";
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

export interface HistoryEvent {
  type: string;
  /** The sub-agent's id. Null for an event of the main agent. */
  agentId: string | null;
  /** Unix time in milliseconds, by the clock of the server's machine. */
  atMs: number;
  data: Record<string, unknown>;
}

const HEAD = /^\{"type":"([^"\\]+)"/;
/**
 * Matches the fields after `data`. It cannot match text inside `data`, because JSON escapes the quotation marks there.
 */
const TRAILER = /\},(?:"agentId":"([^"\\]*)",)?"id":"[^"\\]*","timestamp":"([^"\\]*)"[^{}]*\}\s*$/;

/** Reads the event from a line of the history. Null if the line is incomplete, is not JSON, or has no type or time. */
export function readEvent(line: Line): HistoryEvent | null {
  if (!("whole" in line)) return abridged(line.head, line.tail);
  const { whole } = line;
  const value = parseLine(whole);
  if (value === null || typeof value.type !== "string") return null;
  const agentId = typeof value.agentId === "string" ? value.agentId : null;
  return timed({ type: value.type, agentId, data: isObject(value.data) ? value.data : {} }, value.timestamp);
}

/**
 * Reads an event from the first and the last bytes of its line. Depends on the order in which the runtime of SDK 1.0.14
 * writes the fields: type, data, agentId, id, timestamp, parentId.
 */
function abridged(head: Buffer, tail: Buffer): HistoryEvent | null {
  const [begin, end] = [head.toString("utf8"), tail.toString("utf8")];
  const [, type] = HEAD.exec(begin) ?? [];
  const [, agentId = null, timestamp] = TRAILER.exec(end) ?? [];
  if (type === undefined) return null;
  const data = {
    abridged: true,
    toolCallId: /^\{"type":"[^"]*","data":\{"toolCallId":"([^"\\]*)"/.exec(begin)?.[1],
    delivery: /"delivery":"(\w+)"/.exec(end)?.[1],
    interactionId: /"interactionId":"([^"\\]*)"/.exec(end)?.[1],
  };
  return timed({ type, agentId, data }, timestamp);
}

function timed(event: Omit<HistoryEvent, "atMs">, timestamp: unknown): HistoryEvent | null {
  const atMs = typeof timestamp === "string" ? Date.parse(timestamp) : Number.NaN;
  return Number.isNaN(atMs) ? null : { ...event, atMs };
}

/**
 * We do not read more than this between a position in a history and its end. A session of a day with 2,000 tool calls
 * has less than 100 MB. An agent can make a file of any size, even without using the disk.
 */
export const MOST_HISTORY_BYTES = 256 * 1024 ** 2;
/** Splitting and parsing this many bytes takes less than 30 ms, whatever an agent has written. */
export const PIECE_BYTES = 64 * 1024;
/** How many bytes before the offset we remember. The next read compares them, to detect that the file was replaced. */
const MARK_BYTES = 32;

/** The position up to which a history has been read. */
export interface HistoryPosition {
  ino: number;
  offset: number;
  /** The bytes right before the offset, in base64. */
  mark: string;
}

/** `replaced`: the path now has another file, or the file was cut short, so reading cannot continue. */
export type HistoryFate = "there" | "gone" | "replaced";

export interface HistoryPart {
  bytes: Buffer;
  /** Where the next part begins. Null if the session has no history. */
  at: HistoryPosition | null;
  atEnd: boolean;
  fate: HistoryFate;
}

let lastPiece: Promise<void> = Promise.resolve();

/**
 * Wait for this between two pieces of a history. However many readers wait, only one of them goes on in each round of
 * the event loop, so that many readers do not stop other work for longer than one reader does.
 */
export async function nextPiece(): Promise<void> {
  lastPiece = lastPiece.then(async () => await yieldToOthers());
  await lastPiece;
}

/** @throws FleetError `FLEET_SESSION_LOST` when the history is too long to be read from this position to its end */
export function assertReadable(size: number, sessionId: string, fromBytes: number): void {
  const bytes = size - fromBytes;
  if (bytes <= MOST_HISTORY_BYTES) return;
  throw new FleetError(
    "FLEET_SESSION_LOST",
    `The history of session ${quote(sessionId)} has ${bytes} bytes to read. The fleet reads at most ${MOST_HISTORY_BYTES} bytes.`,
  );
}

export function markOf(bytes: Buffer): string {
  return bytes.subarray(-MARK_BYTES).toString("base64");
}

/** Whether this is still the file that was read up to this position. */
function isContinued(fd: number, { ino, offset, mark }: HistoryPosition, stat: Stats): boolean {
  if (stat.ino !== ino || stat.size < offset) return false;
  const before = Buffer.from(mark, "base64");
  return before.length <= offset && readAt(fd, offset - before.length, before.length).equals(before);
}

/** Reads at most `maxBytes`, and advances the position by the bytes read. */
function readNext(fd: number, position: HistoryPosition, maxBytes: number): Buffer {
  const bytes = readAt(fd, position.offset, maxBytes);
  position.offset += bytes.length;
  position.mark = markOf(Buffer.concat([Buffer.from(position.mark, "base64"), bytes.subarray(-MARK_BYTES)]));
  return bytes;
}

/**
 * Reads the next part of a history.
 *
 * @param fd the open history; null if the session has no history
 * @param from where the last part ended; null for the beginning
 * @throws FleetError `FLEET_SESSION_LOST` when the history is too long to be read from there to its end
 */
export function readPart(
  fd: number | null,
  sessionId: string,
  from: HistoryPosition | null,
  maxBytes: number,
): HistoryPart {
  const none = { bytes: Buffer.alloc(0), at: from, atEnd: true };
  if (fd === null) return { ...none, fate: from === null ? "there" : "gone" };
  const stat = fstatSync(fd);
  const at = from === null ? { ino: stat.ino, offset: 0, mark: "" } : { ...from };
  if (!isContinued(fd, at, stat)) return { ...none, fate: "replaced" };
  assertReadable(stat.size, sessionId, at.offset);
  const bytes = readNext(fd, at, Math.min(maxBytes, stat.size - at.offset));
  return { bytes, at, atEnd: at.offset >= stat.size, fate: "there" };
}
