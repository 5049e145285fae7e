import { randomBytes } from "node:crypto";
import {
  closeSync,
  constants,
  fstatSync,
  fsync,
  futimesSync,
  lstatSync,
  openSync,
  readdirSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { setImmediate as nextRound, setImmediate as yieldToOthers } from "node:timers/promises";
import { promisify } from "node:util";
import { pause } from "../base/clock.js";
import { FleetError, isFleetError, quote, systemCode } from "../base/errors.js";
import { ifThere, readAt } from "../base/if-there.js";
import { shellQuote } from "../base/values/text.js";
import { unwritable } from "../runtime/files/server-folder.js";
import { isLaunchLine, lineOfFleet, readableLine, readLogKey, timeOfLine } from "../runtime/files/server-log.js";

const PIECE_BYTES = 1024 * 1024;
/**
 * Only so many bytes from the end of a log are kept. A server writes less between two rotations, but its agent may not.
 */
const MOST_ROTATED_BYTES = 1024 ** 3;
const { O_CREAT, O_EXCL, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, O_TRUNC, O_WRONLY } = constants;

interface RotationOptions {
  maxBytes: number;
  /** How many rotated files to keep at most: 1 or more. */
  keep: number;
  /** When this signal aborts while the log is copied, the rotation stops and the log stays as it was. */
  signal?: AbortSignal;
}

/**
 * If a log is too large, moves its contents to `LOG.1`, the contents of `LOG.1` to `LOG.2`, and so on. Servers have
 * their log open for appending, so we copy it and then empty it. We lose the bytes that a server writes after our last
 * read of the log and before we empty it, two system calls later. Run only one rotation of a log at a time.
 *
 * If this process is killed, each rotated file is still complete. If the log was not emptied before the kill, the next
 * rotation copies the same contents again. Do not rotate the log of a server that is starting, because the start reads
 * that log.
 *
 * @returns how many bytes were moved: 0 if the log is small enough or missing, or if another process emptied or
 * replaced it
 * @throws FleetError `FLEET_STATE_UNSAFE` when the log is not a regular file; `FLEET_STATE_UNWRITABLE` when the file
 * system fails, for example because the disk is full even without the oldest rotated file; the signal's reason when the
 * signal aborts. In all these cases, the log stays as it was.
 */
export async function rotateLog(path: string, options: RotationOptions): Promise<number> {
  const log = openLog(path);
  if (log === null) return 0;
  try {
    removeLeftOvers(path);
    if (fstatSync(log).size <= options.maxBytes) return 0;
    try {
      return await rotate(log, path, options);
    } catch (error) {
      const isFull = systemCode(error) === "ENOSPC" || systemCode(error) === "EDQUOT";
      if (!isFull || !dropOldest(path)) throw error;
      return await rotate(log, path, options);
    }
  } catch (error) {
    throw isFleetError(error) || systemCode(error)?.startsWith("E") !== true || options.signal?.aborted === true
      ? error
      : unwritable(path, error);
  } finally {
    closeSync(log);
  }
}

async function rotate(log: number, path: string, { keep, signal }: RotationOptions): Promise<number> {
  const temporary = join(dirname(path), `.${basename(path)}.${randomBytes(4).toString("hex")}.tmp`);
  const copy = openSync(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600);
  const buffer = Buffer.allocUnsafe(PIECE_BYTES);
  let unfinished: string | null = temporary;
  try {
    const skipped = Math.max(0, fstatSync(log).size - MOST_ROTATED_BYTES);
    let copied = skipped;
    for (let bytes = PIECE_BYTES; bytes === PIECE_BYTES; copied += bytes) {
      await nextRound();
      signal?.throwIfAborted();
      bytes = copyPiece(log, copy, copied, buffer);
    }
    await promisify(fsync)(copy);
    // From here on, use only synchronous calls. During an asynchronous call, the server could write, and we would lose
    // those bytes.
    const { size, ino, atime, mtime } = fstatSync(log);
    if (size < copied || lstatSync(path, { throwIfNoEntry: false })?.ino !== ino) {
      return 0; // another process emptied or replaced the log during the copy
    }
    makeRoom(path, keep);
    copied = copyRest(log, copy, copied, buffer);
    renameSync(temporary, rotatedPath(path, 1));
    unfinished = rotatedPath(path, 1);
    copied = copyRest(log, copy, copied, buffer);
    empty(path);
    unfinished = null;
    // Keep the log's time: sessions/gc/unused-servers.ts takes it for the time when the server was last used.
    futimesSync(log, atime, mtime);
    return copied - skipped;
  } finally {
    closeSync(copy);
    if (unfinished !== null) rmSync(unfinished, { force: true });
  }
}

function openLog(path: string): number | null {
  let log: number;
  try {
    // Open the log only for reading. A process that has a log open for writing counts as its server and may be killed.
    log = openSync(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
  } catch (error) {
    const code = systemCode(error);
    if (code === "ENOENT") return null;
    throw code === "ELOOP" ? unsafe(path, "a link") : unwritable(path, error);
  }
  if (fstatSync(log).isFile()) return log;
  closeSync(log);
  throw unsafe(path, "not a file");
}

/**
 * Empties a log without opening it for writing, because a process that has a log open for writing counts as its server.
 * On Linux, `O_TRUNC` alone is enough to empty a file.
 */
function empty(path: string): void {
  closeSync(openSync(path, O_RDONLY | O_TRUNC | O_NOFOLLOW | O_NONBLOCK));
}

/** @returns how many bytes it copied. At the end of the log, these are fewer than the buffer's length. */
function copyPiece(log: number, copy: number, from: number, buffer: Buffer): number {
  const bytes = readSync(log, buffer, 0, buffer.length, from);
  // On a nearly full disk, a write may store only the first part of the bytes without an error.
  for (let done = 0; done < bytes; ) done += writeSync(copy, buffer, done, bytes - done);
  return bytes;
}

/** @returns the offset after the last byte. */
function copyRest(log: number, copy: number, from: number, buffer: Buffer): number {
  let offset = from;
  for (let bytes = -1; bytes !== 0; offset += bytes) bytes = copyPiece(log, copy, offset, buffer);
  return offset;
}

function unsafe(path: string, what: string): FleetError {
  return new FleetError("FLEET_STATE_UNSAFE", `The log ${quote(path)} is ${what}, so it is not rotated.`, {
    suggestions: [`ls -l ${shellQuote(path)}`],
  });
}

/** The path of a rotated file: `server.log.1` is the newest. We rename and remove links, but never follow them. */
function rotatedPath(log: string, number: number): string {
  return `${log}.${number}`;
}

/** Removes the incomplete copies of rotations that were killed. */
function removeLeftOvers(log: string): void {
  const prefix = `.${basename(log)}.`;
  for (const name of readdirSync(dirname(log))) {
    if (name.startsWith(prefix) && /^[0-9a-f]{8}\.tmp$/.test(name.slice(prefix.length))) {
      rmSync(join(dirname(log), name), { force: true });
    }
  }
}

/**
 * Frees the number 1: gives the next higher number to each file below the first unused number. Removes old files, so
 * that at most `keep` files exist once the new file is there.
 */
function makeRoom(log: string, keep: number): void {
  const numbers = new Set(rotatedNumbers(log));
  for (const number of numbers) if (number > keep) rmSync(rotatedPath(log, number));
  let gap = 1;
  while (gap < keep && numbers.has(gap)) gap++;
  for (let number = gap - 1; number >= 1; number--) {
    renameSync(rotatedPath(log, number), rotatedPath(log, number + 1));
  }
}

/** Removes the oldest rotated file. @returns false if no rotated file exists */
function dropOldest(log: string): boolean {
  const numbers = rotatedNumbers(log);
  if (numbers.length === 0) return false;
  rmSync(rotatedPath(log, Math.max(...numbers)));
  return true;
}

function rotatedNumbers(log: string): number[] {
  const prefix = `${basename(log)}.`;
  return readdirSync(dirname(log)).flatMap((name) => {
    const number = name.startsWith(prefix) ? name.slice(prefix.length) : "";
    return /^[1-9]\d{0,8}$/.test(number) ? [Number(number)] : [];
  });
}

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

function inodeOf(path: string): number | null {
  return statSync(path, { throwIfNoEntry: false })?.ino ?? null;
}

function openFile(path: string): OpenFile | null {
  const fd = ifThere(() => openSync(path, "r"));
  return fd === null ? null : new OpenFile(fd);
}

class OpenFile implements Disposable {
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

const BLOCK_BYTES = 64 * 1024;
const NEWLINE = 10;
/** A longer line ends the search: an agent that can write to the log of its server could otherwise fill the memory. */
const LONGEST_SCANNED_LINE_BYTES = 16 * 1024 * 1024;
/** Only so many bytes are searched for the wanted lines. */
const MOST_SCANNED_BYTES = 256 * 1024 * 1024;
const SLICE_MS = 20;

export interface LogWish {
  /** How many lines to return at most. */
  lines: number;
  /** If set, leaves out lines that were written before this time, in milliseconds since the epoch. */
  sinceMs?: number | undefined;
  /** Whether to return the lines of the launch before the last launch, instead of the newest lines. */
  previous?: boolean | undefined;
}

/**
 * The last lines of a log and of its rotated files, and the position after them. A missing log has no lines.
 *
 * The lines of the fleet are returned without their signature. A line that only looks like a line of the fleet is
 * marked.
 *
 * Only the fleet's lines have a reliable time. Every other line counts as written at the time of the fleet's next line,
 * or if there is none, at the modification time of the log. This time is never before the real time, so with `sinceMs`,
 * the result contains every line that may have been written after `sinceMs`.
 */
export async function lastLogLines(
  path: string,
  { lines: most, sinceMs, previous = false }: LogWish,
): Promise<{ lines: string[]; at: LogPosition }> {
  const rotated = inodeOf(rotatedPath(path, 1));
  using log = openFile(path);
  const at = { offset: log?.size ?? 0, rotated };
  const lines: string[] = [];
  let launches = previous ? 0 : 1;
  let latestMs = log?.mtimeMs ?? Number.POSITIVE_INFINITY;
  const key = readLogKey(path);
  let until = performance.now() + SLICE_MS;
  for (const line of most === 0 ? [] : linesFromEnd(path, log, at.offset)) {
    if (performance.now() > until) {
      await yieldToOthers();
      until = performance.now() + SLICE_MS;
    }
    const own = lineOfFleet(line, key);
    const time = own === null ? null : timeOfLine(own);
    if (time !== null) latestMs = Date.parse(time);
    if (sinceMs !== undefined && latestMs < sinceMs) break;
    if (launches > 0) lines.push(readableLine(line, key));
    if (previous && own !== null && isLaunchLine(own)) launches++;
    if (lines.length === most || launches === 2) break;
  }
  return { lines: lines.reverse(), at };
}

/** The lines of a log and of its rotated files, the last one first. */
function* linesFromEnd(path: string, log: OpenFile | null, size: number): Generator<string> {
  let left = MOST_SCANNED_BYTES;
  if (log !== null) {
    yield* linesOf(log, size, left);
    left -= size;
  }
  for (let number = 1; left > 0; number++) {
    using rotated = openFile(rotatedPath(path, number));
    if (rotated === null) return;
    yield* linesOf(rotated, rotated.size, left);
    left -= rotated.size;
  }
}

function* linesOf(file: OpenFile, size: number, most: number): Generator<string> {
  let start = size;
  let rest = Buffer.alloc(0);
  for (let block = BLOCK_BYTES; start > 0; ) {
    if (rest.length > LONGEST_SCANNED_LINE_BYTES || size - start > most) return;
    const from = Math.max(0, start - block);
    const bytes = Buffer.concat([file.read(from, start), rest]);
    start = from;
    let end = bytes.length;
    for (let at = lastNewline(bytes, end); at !== -1; at = lastNewline(bytes, end)) {
      // No line follows the newline at the end of the file, so yield nothing for it.
      if (at + 1 < size - start) yield bytes.toString("utf8", at + 1, end);
      end = at;
    }
    // As long as we find no newline, double the block, because each round copies the part of the line that was read so
    // far.
    block = end === bytes.length ? 2 * block : BLOCK_BYTES;
    // Copy the rest, because a slice would keep the whole block in memory.
    rest = Buffer.from(bytes.subarray(0, end));
  }
  if (size > 0) yield rest.toString("utf8");
}

function lastNewline(bytes: Buffer, end: number): number {
  return end === 0 ? -1 : bytes.lastIndexOf(NEWLINE, end - 1);
}
