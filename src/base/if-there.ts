import { mkdirSync, readSync } from "node:fs";
import { systemCode } from "./errors.js";

/**
 * The codes of system errors for a path at which nothing exists. They include ENAMETOOLONG, because an agent can make
 * paths that are too long.
 */
const MISSING = new Set(["ENOENT", "ENOTDIR", "ENAMETOOLONG"]);

/** The result of `work`, or null if the file or folder that it needs is missing. */
export function ifThere<T>(work: () => T): T | null {
  try {
    return work();
  } catch (error) {
    return nullIfMissing(error);
  }
}

export async function ifThereLater<T>(work: () => Promise<T>): Promise<T | null> {
  return await work().catch(nullIfMissing);
}

function nullIfMissing(error: unknown): null {
  if (MISSING.has(systemCode(error) ?? "")) return null;
  throw error;
}

/** Reads `length` bytes of a file from an offset. The result is shorter if the file ends earlier. */
export function readAt(fd: number, position: number, length: number): Buffer {
  const buffer = Buffer.allocUnsafe(length);
  let filled = 0;
  while (filled < length) {
    const bytes = readSync(fd, buffer, filled, length - filled, position + filled);
    if (bytes === 0) break;
    filled += bytes;
  }
  return buffer.subarray(0, filled);
}

/**
 * Makes one folder with mode 0700, unless it exists. Does not use `recursive`, because Node 20 would then report ENOENT
 * on a read-only disk.
 */
export function makeFolder(path: string): void {
  unlessThere(() => mkdirSync(path, { mode: 0o700 }));
}

/** Makes a file, a folder or a link. Does nothing if something is already at its path. */
export function unlessThere(make: () => void): void {
  try {
    make();
  } catch (error) {
    if (systemCode(error) !== "EEXIST") throw error;
  }
}
