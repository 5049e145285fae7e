import { lineOfFleet, readableLine, readLogKey } from "../../runtime/files/log-signature.js";
import { isLaunchLine, timeOfLine } from "../../runtime/files/server-log.js";
import { rotatedPath } from "./log-rotation.js";
import { inodeOf, type LogPosition, type OpenFile, openFile } from "./log-tail.js";

const BLOCK_BYTES = 64 * 1024;
const NEWLINE = 10;

export interface LogWish {
  /** How many lines to return at most. */
  lines: number;
  /** Leaves out what was written before this time, in milliseconds since the epoch. */
  sinceMs?: number | undefined;
  /** Returns lines of the launch before the last one. */
  previous?: boolean | undefined;
}

/**
 * The last lines of a log and of its rotated files, and the position after them. A missing log has no lines.
 *
 * The lines of the fleet have no signature here, and a line that only looks like one of them is marked.
 *
 * Only the times in lines of the fleet count. Every other line was written before the next line of the fleet. The last lines
 * were written before the modification time of the log. So with `sinceMs`, the result has every line that may have been written since then.
 */
export function lastLogLines(
  path: string,
  { lines: most, sinceMs, previous = false }: LogWish,
): { lines: string[]; at: LogPosition } {
  const rotated = inodeOf(rotatedPath(path, 1));
  using log = openFile(path);
  const at = { offset: log?.size ?? 0, rotated };
  const lines: string[] = [];
  let launches = previous ? 0 : 1;
  let latestMs = log?.mtimeMs ?? Number.POSITIVE_INFINITY;
  const key = readLogKey(path);
  for (const line of most === 0 ? [] : linesFromEnd(path, log, at.offset)) {
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
  if (log !== null) yield* linesOf(log, size);
  for (let number = 1; ; number++) {
    using rotated = openFile(rotatedPath(path, number));
    if (rotated === null) return;
    yield* linesOf(rotated, rotated.size);
  }
}

function* linesOf(file: OpenFile, size: number): Generator<string> {
  let start = size;
  let rest = Buffer.alloc(0);
  for (let block = BLOCK_BYTES; start > 0; ) {
    const from = Math.max(0, start - block);
    const bytes = Buffer.concat([file.read(from, start), rest]);
    start = from;
    let end = bytes.length;
    for (let at = lastNewline(bytes, end); at !== -1; at = lastNewline(bytes, end)) {
      // The newline at the end of the file begins no line.
      if (at + 1 < size - start) yield bytes.toString("utf8", at + 1, end);
      end = at;
    }
    // While no newline is found, double the block, because each round copies the part of the line that was read so far.
    block = end === bytes.length ? 2 * block : BLOCK_BYTES;
    // Copy the rest, because a slice would keep the whole block in memory.
    rest = Buffer.from(bytes.subarray(0, end));
  }
  if (size > 0) yield rest.toString("utf8");
}

function lastNewline(bytes: Buffer, end: number): number {
  return end === 0 ? -1 : bytes.lastIndexOf(NEWLINE, end - 1);
}
