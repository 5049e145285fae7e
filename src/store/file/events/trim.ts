import { unlinkQuietly } from "../commit/durable.js";
import { dropDerived } from "./derive.js";
import { type LogFiles, type Segment, sizeOf } from "./files.js";

/** A time only counts as past once the log has later lines that are this much older than now, in milliseconds. */
const SETTLED_MS = 24 * 3_600_000;

export interface Bounds {
  maxBytes: number;
  retentionMs: number;
}

/**
 * The oldest segments that the bounds do not allow. The newest segment stays.
 *
 * The clock may jump. So the age of a segment is measured from the newest line that is at least a day old, and not from now. If
 * the clock jumps ahead for less than a day, nothing is too old because of that.
 *
 * @param timeOf reads the time of the last line of a file, in milliseconds since the epoch; null if it is damaged
 */
export function excess(
  files: LogFiles,
  { maxBytes, retentionMs }: Bounds,
  { nowMs, timeOf }: { nowMs: number; timeOf: (path: string) => number | null },
): Segment[] {
  const segments = files.listSegments().slice(0, -1);
  const times = files.listSegments().map(({ path }) => timeOf(path));
  const settled = times.filter((time): time is number => time !== null && time <= nowMs - SETTLED_MS);
  const reference = Math.max(...settled, Number.NEGATIVE_INFINITY);
  let bytes = files.bytes();
  const found: Segment[] = [];
  for (const [at, segment] of segments.entries()) {
    // If the end of a segment is damaged, it is at least as old as the next one.
    const time = times.slice(at).find((each) => each !== null) ?? null;
    const isOld = time !== null && time < reference - retentionMs;
    if (bytes <= maxBytes && !isOld) break;
    bytes -= sizeOf(segment.path);
    found.push(segment);
  }
  return found;
}

/**
 * Deletes segments, the oldest first. Call it only once the log has a line about that. A purge that was about to replace one of
 * them cannot bring it back afterwards.
 */
export function removeSegments(files: LogFiles, segments: readonly Segment[]): void {
  const upTo = segments.at(-1)?.last ?? 0;
  const unlink = () => {
    // Also those that do not count, because they would count again once the longer ones are gone.
    for (const { path, last } of files.listAllSegments()) if (last <= upTo) unlinkQuietly(path);
  };
  unlink();
  dropDerived(files);
  unlink();
}
