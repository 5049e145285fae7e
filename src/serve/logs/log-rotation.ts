import {
  closeSync,
  constants,
  fstatSync,
  fsync,
  futimesSync,
  lstatSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  writeSync,
} from "node:fs";
import { setImmediate as nextRound } from "node:timers/promises";
import { promisify } from "node:util";
import { FleetError, isFleetError, quote, systemCode } from "../../errors.js";
import { unwritable } from "../../runtime/files/server-folder.js";
import { dropOldest, makeRoom, removeLeftOvers, rotatedPath, temporaryPath } from "./rotated-files.js";

const PIECE_BYTES = 1024 * 1024;
const { O_CREAT, O_EXCL, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, O_TRUNC, O_WRONLY } = constants;

export interface RotationOptions {
  /** A log of more bytes than this is rotated. */
  maxBytes: number;
  /** How many rotated files to keep at most: 1 or more. */
  keep: number;
  /** When it aborts while the log is copied, the rotation stops and the log stays as it was. */
  signal?: AbortSignal;
}

/**
 * Moves the contents of a log to `LOG.1` once the log is too large, those of `LOG.1` to `LOG.2`, and so on. Servers keep
 * their log open, so we copy it and then empty it. Servers append (`O_APPEND`), so they continue at its beginning. We lose
 * the bytes that a server writes between our last read of the log and the emptying, two system calls later. Run only one
 * rotation of a log at a time, because two of them would each copy it.
 *
 * If this process is killed, each rotated file is still whole. At worst the log is not emptied, and the next rotation copies
 * the contents of `LOG.1` again. Do not rotate the log of a server that is starting, because the start reads that log.
 *
 * @returns how many bytes were moved: 0 when the log is small enough or does not exist
 * @throws FleetError `FLEET_STATE_UNWRITABLE` when the disk is full even without the oldest rotated file. The log has not
 * changed then.
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
      if (!isFull(error) || !dropOldest(path)) throw error;
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
  const temporary = temporaryPath(path);
  const copy = openSync(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600);
  const buffer = Buffer.allocUnsafe(PIECE_BYTES);
  let unfinished: string | null = temporary;
  try {
    let copied = 0;
    for (let bytes = PIECE_BYTES; bytes === PIECE_BYTES; copied += bytes) {
      await nextRound();
      signal?.throwIfAborted();
      bytes = copyPiece(log, copy, copied, buffer);
    }
    await promisify(fsync)(copy);
    // Do not pause from here on: bytes that the server writes now may be lost.
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
    // The time of the log shows when its server was last used (see sessions/gc/unused-servers.ts), and a rotation is not a use.
    futimesSync(log, atime, mtime);
    return copied;
  } finally {
    closeSync(copy);
    if (unfinished !== null) rmSync(unfinished, { force: true });
  }
}

function openLog(path: string): number | null {
  let log: number;
  try {
    // Open it for reading only: a process that has a log open for writing counts as its server (`writersOf`) and is killed.
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
 * Empties a log without opening it for writing, because a process that writes to a log counts as its server. On Linux
 * and macOS, `O_TRUNC` alone empties a file.
 */
function empty(path: string): void {
  closeSync(openSync(path, O_RDONLY | O_TRUNC | O_NOFOLLOW | O_NONBLOCK));
}

/** @returns how many bytes it copied. Fewer than a piece means the end of the log. */
function copyPiece(log: number, copy: number, from: number, buffer: Buffer): number {
  const bytes = readSync(log, buffer, 0, buffer.length, from);
  // On a nearly full disk a write may take only the first part of the bytes and report no error.
  for (let done = 0; done < bytes; ) done += writeSync(copy, buffer, done, bytes - done, from + done);
  return bytes;
}

/** @returns the offset after the last byte. */
function copyRest(log: number, copy: number, from: number, buffer: Buffer): number {
  let offset = from;
  for (let bytes = -1; bytes !== 0; offset += bytes) bytes = copyPiece(log, copy, offset, buffer);
  return offset;
}

function isFull(error: unknown): boolean {
  const code = systemCode(error);
  return code === "ENOSPC" || code === "EDQUOT";
}

function unsafe(path: string, what: string): FleetError {
  return new FleetError("FLEET_STATE_UNSAFE", `The log ${quote(path)} is ${what}, so it is not rotated.`, {
    suggestions: [`ls -l ${path}`],
  });
}
