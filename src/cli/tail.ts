import { closeSync, fstatSync, openSync, readSync, statSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { systemCode } from "../errors.js";
import { rotatedPath } from "../serve/rotated-files.js";

const BLOCK_BYTES = 64 * 1024;
const FOLLOW_POLL_MS = 200;
const COMPARED_BYTES = 4096;

/** The last lines of a file, read from its end, and the offset behind them. A file that is not there has none. */
export function lastLines(path: string, count: number): { lines: string[]; offset: number } {
  const fd = openIfThere(path);
  if (fd === null) return { lines: [], offset: 0 };
  try {
    const offset = fstatSync(fd).size;
    let start = offset;
    let tail = Buffer.alloc(0);
    while (start > 0 && countNewlines(tail) <= count) {
      const from = Math.max(0, start - BLOCK_BYTES);
      tail = Buffer.concat([readRange(fd, from, start), tail]);
      start = from;
    }
    const lines = tail.toString("utf8").split("\n");
    if (lines.at(-1) === "") lines.pop();
    return { lines: count === 0 ? [] : lines.slice(-count), offset };
  } finally {
    closeSync(fd);
  }
}

/** The last lines of a log and of its rotated files, and the offset behind them in the log itself. */
export function lastLogLines(path: string, count: number): { lines: string[]; offset: number } {
  const { lines, offset } = lastLines(path, count);
  for (let number = 1; lines.length < count; number++) {
    const rotated = rotatedPath(path, number);
    if (inodeOf(rotated) === null) break;
    lines.unshift(...lastLines(rotated, count - lines.length).lines);
  }
  return { lines, offset };
}

/**
 * What is added to a file from `offset` on, until the signal. When the file is rotated, what was still to be read of it is
 * read from the rotated one; a file that was cut short otherwise is read from its beginning.
 */
export async function* followFile(path: string, offset: number, signal: AbortSignal): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  const newestRotated = rotatedPath(path, 1);
  let from = offset;
  let rotated = inodeOf(newestRotated);
  while (!signal.aborted) {
    const fd = openIfThere(path);
    if (fd !== null) {
      try {
        // The size first: a log that was emptied has its rotated file already.
        const { size } = fstatSync(fd);
        const isNew = inodeOf(newestRotated) !== rotated;
        const isRotated = isNew && (size < from || !isStillWhole(fd, size, newestRotated));
        if (isRotated) {
          rotated = inodeOf(newestRotated);
          yield decoder.decode(restOf(newestRotated, from), { stream: true });
        }
        if (isRotated || size < from) from = 0;
        const added = readRange(fd, from, Math.max(from, fstatSync(fd).size));
        from += added.length; // fewer than expected when it was emptied just now
        if (added.length > 0) yield decoder.decode(added, { stream: true });
      } finally {
        closeSync(fd);
      }
    }
    await delay(FOLLOW_POLL_MS, undefined, { signal }).catch(() => undefined); // aborted: the loop's condition ends it
  }
}

/** Whether the file still begins as the rotated one: between the copying and the emptying, both are there. */
function isStillWhole(fd: number, size: number, rotatedFile: string): boolean {
  const rotated = openIfThere(rotatedFile);
  if (rotated === null) return true; // was only removed
  try {
    const bytes = Math.min(size, fstatSync(rotated).size, COMPARED_BYTES);
    return bytes > 0 && readRange(fd, 0, bytes).equals(readRange(rotated, 0, bytes));
  } finally {
    closeSync(rotated);
  }
}

function restOf(path: string, from: number): Buffer {
  const fd = openIfThere(path);
  if (fd === null) return Buffer.alloc(0);
  try {
    return readRange(fd, from, Math.max(from, fstatSync(fd).size));
  } finally {
    closeSync(fd);
  }
}

function inodeOf(path: string): number | null {
  return statSync(path, { throwIfNoEntry: false })?.ino ?? null;
}

function openIfThere(path: string): number | null {
  try {
    return openSync(path, "r");
  } catch (error) {
    if (systemCode(error) === "ENOENT") return null;
    throw error;
  }
}

function readRange(fd: number, from: number, to: number): Buffer {
  const buffer = Buffer.alloc(to - from);
  let filled = 0;
  while (filled < buffer.length) {
    const bytes = readSync(fd, buffer, filled, buffer.length - filled, from + filled);
    if (bytes === 0) break;
    filled += bytes;
  }
  return buffer.subarray(0, filled);
}

function countNewlines(buffer: Buffer): number {
  let count = 0;
  for (let index = buffer.indexOf(10); index !== -1; index = buffer.indexOf(10, index + 1)) count++;
  return count;
}
