import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { parseObject } from "../../../config/values/json.js";
import { readIfThere } from "../failures.js";

/** The end of a log, to which the next line is chained: the number of the last line, and its hash. */
export interface Head {
  seq: number;
  hash: string;
}

/** The head of a log without lines. */
export const NO_LINES: Head = { seq: 0, hash: "" };

const DIGITS = 16;
const BATCH = /^(\d{16})\.jsonl$/;
const SEGMENT = /^(\d{16})-(\d{16})\.jsonl$/;

/** A file with many batches: the lines `first` to `last`. */
export interface Segment {
  first: number;
  last: number;
  /** The number of the first line that counts. An earlier segment also contains the lines before this line. */
  from: number;
  path: string;
}

/**
 * The files of the log:
 *
 * - `events/open/FIRST.jsonl` is a batch, the lines of one commit. FIRST is the number of its first line.
 * - `events/segments/FIRST-LAST.jsonl` has the lines of many batches. Once it exists, these batches no longer count. If
 *   two segments have the same first line, only the longer one counts, and a line that is in two segments counts once.
 * - `events-head.json` is a note of the newest line. It is outside of `events`, so that a loss of `events` is detected.
 */
export class LogFiles {
  readonly root: string;
  readonly open: string;
  readonly segments: string;
  readonly headNote: string;

  constructor(root: string) {
    this.root = root;
    this.open = join(root, "events", "open");
    this.segments = join(root, "events", "segments");
    this.headNote = join(root, "events-head.json");
  }

  /** The numbers of the first lines of all batches, ascending. */
  listBatches(): number[] {
    return this.#names(this.open)
      .flatMap((name) => BATCH.exec(name)?.[1] ?? [])
      .map(Number)
      .sort((a, b) => a - b);
  }

  batchPath(first: number): string {
    return join(this.open, `${padded(first)}.jsonl`);
  }

  /**
   * The segments that count, in the order of their lines. Two processes that compact at the same time may put the same lines
   * into two segments. Then `from` of the later segment is its first line that the earlier segment lacks.
   */
  listSegments(): Segment[] {
    return this.countingSegments(this.listAllSegments());
  }

  /** Those of all segments that count. */
  countingSegments(all: readonly Segment[]): Segment[] {
    let upTo = 0;
    return all
      .filter(({ first }, at) => all[at + 1]?.first !== first)
      .flatMap((segment) => {
        if (segment.last <= upTo) return [];
        const from = Math.max(segment.first, upTo + 1);
        upTo = segment.last;
        return [{ ...segment, from }];
      });
  }

  /** All segments. If two have the same first line, the longer one is later. */
  listAllSegments(): Segment[] {
    return this.#names(this.segments)
      .flatMap((name) => {
        const [, first, last] = SEGMENT.exec(name) ?? [];
        return last === undefined
          ? []
          : [{ first: Number(first), last: Number(last), from: Number(first), path: join(this.segments, name) }];
      })
      .sort((a, b) => a.first - b.first || a.last - b.last);
  }

  segmentPath(first: number, last: number): string {
    return join(this.segments, `${padded(first)}-${padded(last)}.jsonl`);
  }

  /** The size of all files that count, in bytes. */
  bytes(): number {
    const paths = [
      ...this.listSegments().map(({ path }) => path),
      ...this.listBatches().map((at) => this.batchPath(at)),
    ];
    return paths.reduce((sum, path) => sum + sizeOf(path), 0);
  }

  /** The head in `events-head.json`; null if that file is missing or not readable. */
  readNote(): Head | null {
    const text = readIfThere(this.headNote, () => readFileSync(this.headNote, "utf8"));
    const { seq, hash } = (text === undefined ? undefined : parseObject(text)) ?? {};
    return typeof seq === "number" && typeof hash === "string" ? { seq, hash } : null;
  }

  #names(folder: string): string[] {
    return readIfThere(folder, () => readdirSync(folder)) ?? [];
  }
}

export function sizeOf(path: string): number {
  return readIfThere(path, () => statSync(path, { throwIfNoEntry: false })?.size) ?? 0;
}

function padded(seq: number): string {
  return String(seq).padStart(DIGITS, "0");
}

/** The number and the hash of a line, and the hash of the line before it; null if the line is damaged. */
export function placeOf(line: string): (Head & { prev: string }) | null {
  const { seq, hash, prev } = parseObject(line) ?? {};
  return typeof seq === "number" && typeof hash === "string" && typeof prev === "string" ? { seq, hash, prev } : null;
}

/** The lines of a file; undefined if there is no such file. */
export function linesIn(path: string): string[] | undefined {
  const text = readIfThere(path, () => readFileSync(path, "utf8"));
  return text?.split("\n").filter((line) => line !== "");
}
