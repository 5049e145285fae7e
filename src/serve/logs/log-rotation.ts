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
  writeSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { setImmediate as nextRound } from "node:timers/promises";
import { promisify } from "node:util";
import { shellQuote } from "../../config/values/text.js";
import { FleetError, isFleetError, quote, systemCode } from "../../errors.js";
import { unwritable } from "../../runtime/files/server-folder.js";

const PIECE_BYTES = 1024 * 1024;
/** Only so many bytes from the end of a log are kept. A server writes less between two rotations, but its agent may not. */
const MOST_BYTES = 1024 ** 3;
const { O_CREAT, O_EXCL, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, O_TRUNC, O_WRONLY } = constants;

export interface RotationOptions {
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
    const skipped = Math.max(0, fstatSync(log).size - MOST_BYTES);
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
export function rotatedPath(log: string, number: number): string {
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
