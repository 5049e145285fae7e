import { randomBytes } from "node:crypto";
import { closeSync, fchmodSync, fsync, fsyncSync, mkdirSync, openSync, unlinkSync, writeSync } from "node:fs";
import { readdir, rm, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { systemCode } from "../../base/errors.js";

/*
 * Only `fsync` waits for the disk, so only `fsync` runs in Node's thread pool. The other calls take microseconds. In
 * the thread pool, each would take several times as much processor time.
 */
const syncToDisk = promisify(fsync);

/** A unique name for a temporary file. It contains the PID, so that a sweep can check whether the writer has died. */
export function scratchName(kind: "tmp" | "trash"): string {
  return `.${kind}-${process.pid}-${randomBytes(6).toString("hex")}`;
}

/**
 * Writes a new file and syncs it to disk. If it cannot be written completely, removes it.
 *
 * @returns its descriptor, which the caller must close
 */
export async function writeNewFile(path: string, bytes: Buffer): Promise<number> {
  const fd = openSync(path, "wx", 0o600);
  try {
    // The umask may have removed bits from the mode above.
    fchmodSync(fd, 0o600);
    writeWhole(fd, bytes);
    await syncToDisk(fd);
    return fd;
  } catch (error) {
    closeQuietly(fd);
    unlinkQuietly(path);
    throw error;
  }
}

/**
 * Writes all bytes, in several calls if necessary. On a nearly full disk, one call may write only the first bytes
 * without an error.
 */
export function writeWhole(fd: number, bytes: Buffer): void {
  for (let done = 0; done < bytes.length; ) {
    const bytesWritten = writeSync(fd, bytes, done, bytes.length - done, done);
    if (bytesWritten === 0) throw Object.assign(new Error("write() made no progress"), { code: "EIO" });
    done += bytesWritten;
  }
}

export async function syncFolder(path: string): Promise<void> {
  const fd = openSync(path, "r");
  try {
    await syncToDisk(fd);
  } finally {
    closeQuietly(fd);
  }
}

/** Syncs a file or a folder, and blocks this process until that is done. */
export function syncNow(path: string): void {
  const fd = openSync(path, "r");
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/** Creates a private folder and its missing parents durably. Existing folders stay as they are. */
export function makeFolder(path: string): void {
  const first = mkdirSync(path, { recursive: true, mode: 0o700 });
  if (first === undefined) return;
  for (let made = path; ; made = dirname(made)) {
    syncNow(dirname(made));
    if (made === first || made === dirname(made)) return;
  }
}

const SCRATCH = /^\.(?:tmp|trash)-(\d+)-[0-9a-f]+$/;
/** No write takes this many milliseconds. So an older file is a left-over, even if the PID in its name is in use. */
const MAX_AGE_MS = 10 * 60_000;

/**
 * Removes the temporary files of killed writers in `folder`. Does nothing if the folder does not exist. It may remove
 * the file of a live writer in another PID namespace, which then tries again.
 */
export async function sweepFolder(folder: string): Promise<void> {
  const names = await readdir(folder).catch(() => [] as string[]); // the next sweep tries again
  for (const name of names) {
    const pid = SCRATCH.exec(name)?.[1];
    if (pid === undefined) continue;
    const path = join(folder, name);
    if (isAlive(Number(pid)) && !(await isOld(path))) continue;
    await rm(path, { recursive: true, force: true }).catch(() => "left for the next sweep");
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return systemCode(error) !== "ESRCH";
  }
}

async function isOld(path: string): Promise<boolean> {
  try {
    return (await stat(path)).mtimeMs < Date.now() - MAX_AGE_MS;
  } catch {
    return false;
  }
}

/** Closes a file and ignores failures. Call it only if the written bytes are already synced or not needed. */
export function closeQuietly(fd: number): void {
  try {
    closeSync(fd);
  } catch {
    // harmless
  }
}

/** Removes a temporary file. If that fails, a later write sweeps it. */
export function unlinkQuietly(path: string): void {
  try {
    unlinkSync(path);
  } catch {
    // swept later
  }
}
