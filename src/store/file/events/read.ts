import { type LogFiles, linesIn, placeOf } from "./files.js";

export interface LogFile {
  path: string;
  /** The first line of the file that counts. */
  from: number;
}

/** The files with the lines from `from` on, in their order. */
export function filesOf(files: LogFiles, from = 1): LogFile[] {
  // In this order, because batches become part of segments, and never the other way.
  const batches = files.listBatches();
  const segments = files.listSegments();
  const upTo = segments.at(-1)?.last ?? 0;
  const open = batches.filter((first, at) => first > upTo && (batches[at + 1] ?? Number.POSITIVE_INFINITY) > from);
  return [
    ...segments.filter(({ last }) => last >= from),
    ...open.map((first) => ({ path: files.batchPath(first), from: first })),
  ];
}

/** The lines of a file that count, also those that are damaged; undefined if the file has become part of another one. */
export function countingLines({ path, from }: LogFile): string[] | undefined {
  const lines = linesIn(path);
  const first = lines?.findIndex((line) => (placeOf(line)?.seq ?? from) >= from) ?? 0;
  return first === -1 ? [] : lines?.slice(first);
}
