import { setImmediate as yieldToOthers } from "node:timers/promises";
import { lineOfFleet, readableLine, readLogKey } from "../../runtime/files/log-signature.js";
import { isLaunchLine, timeOfLine } from "../../runtime/files/server-log.js";
import { rotatedPath } from "./log-rotation.js";
import { inodeOf, type LogPosition, type OpenFile, openFile } from "./log-tail.js";

const BLOCK_BYTES = 64 * 1024;
const NEWLINE = 10;
/** A longer line ends the search: an agent that can write to the log of its server could otherwise fill the memory. */
const LONGEST_LINE_BYTES = 16 * 1024 * 1024;
/** Only so many bytes are searched for the wanted lines. */
const MOST_BYTES = 256 * 1024 * 1024;
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
  let left = MOST_BYTES;
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
    if (rest.length > LONGEST_LINE_BYTES || size - start > most) return;
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
