import { linkSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { systemCode } from "../../../errors.js";
import { closeQuietly, makeFolder, scratchName, syncFolder, unlinkQuietly, writeNewFile } from "../commit/durable.js";
import { readIfThere } from "../failures.js";
import { type LogFiles, placeOf, type Segment, sizeOf } from "./files.js";

/** So many of the newest batches stay as they are. */
const KEPT = 8;

/**
 * Moves batches into segments: the newest segment grows until it has `segmentBytes`, and then a new one begins. Several
 * processes may do this at once, because a segment is never changed. A longer one replaces it.
 */
export async function compact(files: LogFiles, segmentBytes: number): Promise<void> {
  const newest = files.listSegments().at(-1);
  const upTo = newest?.last ?? 0;
  const batches = files.listBatches();
  const moved = batches.slice(0, -KEPT).filter((first) => first > upTo);
  const grown = newest !== undefined && sizeOf(newest.path) < segmentBytes ? newest : undefined;
  const texts: string[] = [];
  for (const path of [...(grown === undefined ? [] : [grown.path]), ...moved.map((at) => files.batchPath(at))]) {
    const text = readIfThere(path, () => readFileSync(path, "utf8"));
    if (text === undefined) return; // another process does the same
    texts.push(text.endsWith("\n") ? text : `${text}\n`);
  }
  const first = grown?.first ?? moved[0];
  const next = batches.find((each) => each > (moved.at(-1) ?? upTo));
  if (moved.length > 0 && first !== undefined && next !== undefined) {
    // The next batch begins after the last line, unless lines are missing between them.
    const lastLine = placeOf(texts.at(-1)?.trimEnd().split("\n").at(-1) ?? "");
    await publish(files, texts.join(""), { first, last: lastLine?.seq ?? next - 1 });
  }
  removeMoved(files);
}

async function publish(files: LogFiles, text: string, { first, last }: Pick<Segment, "first" | "last">): Promise<void> {
  makeFolder(files.segments);
  const temp = join(files.segments, scratchName("tmp"));
  try {
    closeQuietly(await writeNewFile(temp, Buffer.from(text)));
    linkSync(temp, files.segmentPath(first, last));
  } catch (error) {
    if (systemCode(error) !== "EEXIST") throw error;
  } finally {
    unlinkQuietly(temp);
  }
  await syncFolder(files.segments);
}

/** Deletes what became part of a segment, the oldest first. */
function removeMoved(files: LogFiles): void {
  const kept = files.listSegments();
  for (const { path } of files.listAllSegments()) if (!kept.some((each) => each.path === path)) unlinkQuietly(path);
  const upTo = kept.at(-1)?.last ?? 0;
  // The newest batch stays: see `ChainWriter`.
  for (const first of files.listBatches().slice(0, -1)) if (first <= upTo) unlinkQuietly(files.batchPath(first));
}
