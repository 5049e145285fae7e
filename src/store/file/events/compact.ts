import { linkSync, readFileSync } from "node:fs";
import { systemCode } from "../../../errors.js";
import { unlinkQuietly } from "../commit/durable.js";
import { readIfThere } from "../failures.js";
import { type Derived, derive } from "./derive.js";
import { type LogFiles, placeOf, sizeOf } from "./files.js";

/** How many of the newest batches {@link compact} does not move into segments. */
const KEPT = 8;

/**
 * Moves batches into segments: the newest segment grows until it has `segmentBytes`, and then a new segment begins.
 * Several processes may do this at once, because no process changes an existing segment. A longer one replaces it.
 */
export async function compact(files: LogFiles, segmentBytes: number): Promise<void> {
  const newest = files.listSegments().at(-1);
  const upTo = newest?.last ?? 0;
  const batches = files.listBatches();
  const moved = batches.slice(0, -KEPT).filter((first) => first > upTo);
  const grown = newest !== undefined && sizeOf(newest.path) < segmentBytes ? newest : undefined;
  const first = grown?.first ?? moved[0];
  const next = batches.find((each) => each > (moved.at(-1) ?? upTo));
  if (moved.length > 0 && first !== undefined && next !== undefined) {
    const paths = [...(grown === undefined ? [] : [grown.path]), ...moved.map((at) => files.batchPath(at))];
    const make = () => joined(files, paths, { first, next });
    if (!(await derive(files, { make, place: linkUnlessThere }))) return; // the next commit tries again
  }
  removeMoved(files);
}

/** The lines of several files as one segment. Undefined if another process has compacted the log and deleted a file. */
function joined(
  files: LogFiles,
  paths: readonly string[],
  { first, next }: { first: number; next: number },
): Derived | undefined {
  const texts: string[] = [];
  for (const path of paths) {
    const text = readIfThere(path, () => readFileSync(path, "utf8"));
    if (text === undefined) return undefined;
    texts.push(text.endsWith("\n") ? text : `${text}\n`);
  }
  // If the last line is damaged, its number is not known. Then assume that the next batch follows it without a gap.
  const lastLine = placeOf(texts.at(-1)?.trimEnd().split("\n").at(-1) ?? "");
  return { path: files.segmentPath(first, lastLine?.seq ?? next - 1), text: texts.join("") };
}

function linkUnlessThere(scratch: string, path: string): void {
  try {
    linkSync(scratch, path);
  } catch (error) {
    if (systemCode(error) !== "EEXIST") throw error;
  }
}

/** Deletes the batches and the shorter segments that have become part of a segment, the oldest first. */
function removeMoved(files: LogFiles): void {
  // List the folder only once. A longer segment that another process adds after the list must stay.
  const all = files.listAllSegments();
  const kept = files.countingSegments(all);
  for (const { path } of all) if (!kept.some((each) => each.path === path)) unlinkQuietly(path);
  const upTo = kept.at(-1)?.last ?? 0;
  // The newest batch stays: see `ChainWriter`.
  for (const first of files.listBatches().slice(0, -1)) if (first <= upTo) unlinkQuietly(files.batchPath(first));
}
