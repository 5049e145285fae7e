import type { LogFiles } from "./files.js";

/** The files with the lines from `from` on, in their order. */
export function filesOf(files: LogFiles, from = 1): string[] {
  // In this order, because batches become part of segments, and never the other way.
  const batches = files.listBatches();
  const segments = files.listSegments();
  const upTo = segments.at(-1)?.last ?? 0;
  const open = batches.filter((first, at) => first > upTo && (batches[at + 1] ?? Number.POSITIVE_INFINITY) > from);
  return [
    ...segments.filter(({ last }) => last >= from).map(({ path }) => path),
    ...open.map((first) => files.batchPath(first)),
  ];
}
