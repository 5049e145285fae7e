import { type LogFiles, linesIn, placeOf } from "./files.js";

export interface LogFile {
  path: string;
  /** The number of the first line in the file that counts. */
  from: number;
}

/** The files that contain the lines from number `from` on, in the order of their lines. */
export function filesOf(files: LogFiles, from = 1): LogFile[] {
  // List the batches first. A batch may become part of a segment between the two calls, but never the other way round.
  const batches = files.listBatches();
  const segments = files.listSegments();
  const upTo = segments.at(-1)?.last ?? 0;
  const open = batches.filter((first, at) => first > upTo && (batches[at + 1] ?? Number.POSITIVE_INFINITY) > from);
  return [
    ...segments.filter(({ last }) => last >= from),
    ...open.map((first) => ({ path: files.batchPath(first), from: first })),
  ];
}

/** Those lines of a file that count, including damaged lines; undefined if the file has become part of another file. */
export function countingLines({ path, from }: LogFile): string[] | undefined {
  const lines = linesIn(path);
  const first = lines?.findIndex((line) => (placeOf(line)?.seq ?? from) >= from) ?? 0;
  return first === -1 ? [] : lines?.slice(first);
}
