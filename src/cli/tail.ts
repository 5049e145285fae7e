import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { systemCode } from "../errors.js";

const BLOCK_BYTES = 64 * 1024;
const FOLLOW_POLL_MS = 200;

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

/** What is added to a file from `offset` on, until the signal. A file that was cut short is read from its beginning. */
export async function* followFile(path: string, offset: number, signal: AbortSignal): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let from = offset;
  while (!signal.aborted) {
    const fd = openIfThere(path);
    if (fd !== null) {
      try {
        const { size } = fstatSync(fd);
        if (size < from) from = 0;
        if (size > from) yield decoder.decode(readRange(fd, from, size), { stream: true });
        from = size;
      } finally {
        closeSync(fd);
      }
    }
    await delay(FOLLOW_POLL_MS, undefined, { signal }).catch(() => undefined); // aborted: the loop's condition ends it
  }
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
