import { unlinkQuietly } from "../commit/durable.js";
import { dropDerived } from "./derive.js";
import { type LogFiles, type Segment, sizeOf } from "./files.js";

/** The time of a line is trusted once it is at least this far in the past, in milliseconds. */
const SETTLED_MS = 24 * 3_600_000;

export interface Bounds {
  maxBytes: number;
  retentionMs: number;
}

/**
 * Returns the oldest segments that exceed the bounds. The newest segment is never one of them.
 *
 * The clock may jump ahead. So the age of a segment does not count from now. It counts from the newest time of a line
 * that is at least a day in the past. If the clock is wrong for less than a day, no segment becomes too old.
 *
 * @param timeOf reads the time of the last line of a file, in milliseconds since the epoch; null if it is damaged
 */
export function excess(
  files: LogFiles,
  { maxBytes, retentionMs }: Bounds,
  { nowMs, timeOf }: { nowMs: number; timeOf: (path: string) => number | null },
): Segment[] {
  const all = files.listSegments();
  const segments = all.slice(0, -1);
  const times = all.map(({ path }) => timeOf(path));
  const settled = times.filter((time): time is number => time !== null && time <= nowMs - SETTLED_MS);
  const reference = Math.max(...settled, Number.NEGATIVE_INFINITY);
  let bytes = files.bytes();
  const found: Segment[] = [];
  for (const [at, segment] of segments.entries()) {
    // If the last line of a segment is damaged, use the time of the next segment, because this one is at least as old.
    const time = times.slice(at).find((each) => each !== null) ?? null;
    const isOld = time !== null && time < reference - retentionMs;
    if (bytes <= maxBytes && !isOld) break;
    bytes -= sizeOf(segment.path);
    found.push(segment);
  }
  return found;
}

/**
 * Deletes segments, the oldest first. Call it only after the log has recorded the deletion. A purge that is replacing
 * one of these segments at the same time cannot bring the segment back.
 */
export function removeSegments(files: LogFiles, segments: readonly Segment[]): void {
  const upTo = segments.at(-1)?.last ?? 0;
  const unlink = () => {
    // Also delete segments that do not count, because they would count again once the longer segments are gone.
    for (const { path, last } of files.listAllSegments()) if (last <= upTo) unlinkQuietly(path);
  };
  unlink();
  dropDerived(files);
  unlink();
}
