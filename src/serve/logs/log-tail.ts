import { closeSync, fstatSync, openSync, statSync } from "node:fs";
import { setImmediate as yieldToOthers } from "node:timers/promises";
import { pause } from "../../runtime/clock.js";
import { ifThere, readAt } from "../../runtime/files/if-there.js";
import { readableLine, readLogKey } from "../../runtime/files/log-signature.js";
import { rotatedPath } from "./log-rotation.js";

const FOLLOW_POLL_MS = 200;
const COMPARED_BYTES = 4096;
/** A longer line is returned before it is complete. */
const LONGEST_LINE_BYTES = 1024 * 1024;
/** The most bytes that one read of a log returns. The next read continues after them. */
const MOST_BYTES = 2 * LONGEST_LINE_BYTES;

const NOTHING = Buffer.alloc(0);

/** The position up to which a reader has read a log. The reader can continue from it even after the log was rotated. */
export interface LogPosition {
  /** The offset after the last byte that was read. */
  offset: number;
  /** The inode of the newest rotated file when the log was read. Null if no rotated file existed. */
  rotated: number | null;
}

export interface LogEnd {
  /** The server's id. */
  server: string;
  /** The path of the log, on the server's host. */
  log: string;
  lines: string[];
  at: LogPosition;
}

/**
 * Reads the lines after a position in a log. If the log has been rotated since that position was recorded, first reads
 * the rest of the rotated file. If the log was cut short in another way, reads it from its beginning.
 */
function readOn(path: string, at: LogPosition): { bytes: Buffer; at: LogPosition } {
  using log = openFile(path);
  if (log === null) return { bytes: Buffer.alloc(0), at };
  const newestRotated = rotatedPath(path, 1);
  // Read the size before looking for a new rotated file. A rotation makes that file first and then empties the log. So
  // if we already see the emptied log, we also see the file.
  const { size } = log;
  const isNew = inodeOf(newestRotated) !== at.rotated;
  using file = isNew ? openFile(newestRotated) : null;
  // A new rotated file may be a copy of a log that has not been emptied so far. The rotation is complete once the log
  // is shorter than at the last read, or begins differently from that file.
  const isRotated = isNew && (size < at.offset || (file !== null && !beginsAlike(log, size, file)));
  const rest = isRotated && file !== null ? file.read(at.offset, Math.min(file.size, at.offset + MOST_BYTES)) : NOTHING;
  if (rest.length === MOST_BYTES) return { bytes: rest, at: { ...at, offset: at.offset + rest.length } };
  const from = isRotated || size < at.offset ? 0 : at.offset;
  const added = wholeLines(log.read(from, Math.min(log.size, from + MOST_BYTES)));
  const rotated = isRotated ? inodeOf(newestRotated) : at.rotated;
  return { bytes: Buffer.concat([rest, added]), at: { offset: from + added.length, rotated } };
}

/**
 * Leaves out an incomplete last line, unless it is very long. Only a complete line has the signature that shows whether
 * the fleet wrote it.
 */
function wholeLines(bytes: Buffer): Buffer {
  const end = bytes.lastIndexOf("\n") + 1;
  return bytes.length - end > LONGEST_LINE_BYTES ? bytes : bytes.subarray(0, end);
}

/** Yields the lines that are added to a log after a position, until the signal aborts. */
export async function* followLog(path: string, at: LogPosition, signal: AbortSignal): AsyncGenerator<Buffer> {
  for (let position = at; !signal.aborted; ) {
    const more = await awaitMore(path, position, signal);
    position = more.at;
    if (more.bytes.length === 0) continue;
    yield more.bytes;
    await yieldToOthers(); // a log that grows all the time must not stop the timers of this process
  }
}

/**
 * Waits until the log has complete lines after a position, and returns them in their readable form (see
 * `readableLine`). The result has no bytes if the signal aborts first.
 */
export async function awaitMore(
  path: string,
  at: LogPosition,
  signal: AbortSignal,
): Promise<{ bytes: Buffer; at: LogPosition }> {
  for (;;) {
    const read = readOn(path, at);
    if (read.bytes.length > 0) return { bytes: readable(read.bytes, path), at: read.at };
    if (signal.aborted) return read;
    await pause(FOLLOW_POLL_MS, signal).catch(() => undefined); // if aborted, read one last time
  }
}

function readable(bytes: Buffer, log: string): Buffer {
  const key = readLogKey(log);
  const lines = bytes.toString("utf8").split("\n");
  return Buffer.from(lines.map((line) => readableLine(line, key)).join("\n"));
}

/**
 * Whether the log begins like its rotated file. If so, the log was copied to that file, but has not been emptied so
 * far.
 */
function beginsAlike(log: OpenFile, size: number, rotated: OpenFile): boolean {
  const bytes = Math.min(size, rotated.size, COMPARED_BYTES);
  return bytes > 0 && log.read(0, bytes).equals(rotated.read(0, bytes));
}

export function inodeOf(path: string): number | null {
  return statSync(path, { throwIfNoEntry: false })?.ino ?? null;
}

export function openFile(path: string): OpenFile | null {
  const fd = ifThere(() => openSync(path, "r"));
  return fd === null ? null : new OpenFile(fd);
}

export class OpenFile implements Disposable {
  readonly #fd: number;

  constructor(fd: number) {
    this.#fd = fd;
  }

  get size(): number {
    return fstatSync(this.#fd).size;
  }

  get mtimeMs(): number {
    return fstatSync(this.#fd).mtimeMs;
  }

  /** Returns fewer bytes if the file ends before `to`. */
  read(from: number, to: number): Buffer {
    return readAt(this.#fd, from, Math.max(0, to - from));
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }
}
