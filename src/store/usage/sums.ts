import { readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import {
  countsOf,
  hourOf,
  keyOf,
  type LedgerLine,
  type UsageBy,
  type UsageCounts,
  UsageParts,
} from "../../model/usage/usage.js";
import { scratchName } from "../file/commit/durable.js";
import type { Segments } from "./segments.js";

/** By these, the lines of a segment are added up. Sums by model and by day come from those by user. */
const KINDS = ["user", "session", "token"] as const;
type Kind = (typeof KINDS)[number];

/** Hour, key, user, model, and the counts in the order of {@link COUNTS}. */
type Row = [hour: number, key: string | null, user: string, model: string | null, ...counts: (number | null)[]];

const COUNTS = ["turns", "requests", "inputTokens", "outputTokens", "cacheReadTokens", "credits"] as const;

/** The sums of the first `bytes` bytes of a segment, by hour. */
export interface Sums {
  bytes: number;
  rows: Row[];
  /** For each hour, the part of the segment that contains all of its lines. */
  ranges: [hour: number, from: number, to: number][];
}

export function sumsKind(by: UsageBy): Kind {
  return by === "model" || by === "day" ? "user" : by;
}

export function countsIn(row: Row): UsageCounts {
  const [, , , , turns, requests, inputTokens = null, outputTokens = null, cacheReadTokens = null, credits = null] =
    row;
  return { turns: turns ?? 0, requests: requests ?? 0, inputTokens, outputTokens, cacheReadTokens, credits };
}

/**
 * The sums beside a segment, which save reading its lines. They can be made again from the lines at any time, so they are
 * written without care for power failures, and readers ignore a file that is damaged.
 */
export class SumsFiles {
  readonly #segments: Segments;

  constructor(segments: Segments) {
    this.#segments = segments;
  }

  read(number: number, kind: Kind): Sums | null {
    try {
      return JSON.parse(readFileSync(this.#pathOf(number, kind), "utf8")) as Sums;
    } catch {
      return null;
    }
  }

  /** Adds up a sealed segment, unless that has been done. */
  make(number: number): void {
    if (KINDS.every((kind) => statSync(this.#pathOf(number, kind), { throwIfNoEntry: false }) !== undefined)) return;
    const sums = sumsOf(this.#segments, number);
    for (const kind of KINDS) {
      const temp = join(this.#segments.folder, scratchName("tmp"));
      try {
        writeFileSync(temp, JSON.stringify(sums[kind]), { mode: 0o600, flag: "wx" });
        renameSync(temp, this.#pathOf(number, kind));
      } finally {
        rmSync(temp, { force: true });
      }
    }
  }

  remove(number: number): void {
    for (const kind of KINDS) rmSync(this.#pathOf(number, kind), { force: true });
  }

  #pathOf(number: number, kind: Kind): string {
    return this.#segments.pathOf(number).replace(/jsonl$/, `${kind}.json`);
  }
}

/** How much of a segment is read at once, in bytes. The range of an hour has the same resolution. */
const PIECE_BYTES = 256 * 1024;

function sumsOf(segments: Segments, number: number): Record<Kind, Sums> {
  const ranges = new Map<number, [from: number, to: number]>();
  const hours = new Map<number, Record<Kind, UsageParts>>();
  let bytes = 0;
  for (;;) {
    const { lines, end } = segments.read(number, bytes, bytes + PIECE_BYTES);
    if (end === bytes) break;
    for (const line of lines) {
      const hour = hourOf(line.at);
      const range = ranges.get(hour);
      if (range === undefined) ranges.set(hour, [bytes, end]);
      else range[1] = end;
      addTo(hours, hour, line);
    }
    bytes = end;
  }
  const sums = (kind: Kind): Sums => ({
    bytes,
    ranges: [...ranges].map(([hour, [from, to]]) => [hour, from, to]),
    rows: [...hours].flatMap(([hour, parts]) =>
      parts[kind].all.map((part): Row => [hour, part.key, part.user, part.model, ...COUNTS.map((name) => part[name])]),
    ),
  });
  return { user: sums("user"), session: sums("session"), token: sums("token") };
}

function addTo(hours: Map<number, Record<Kind, UsageParts>>, hour: number, line: LedgerLine): void {
  let parts = hours.get(hour);
  if (parts === undefined) {
    parts = { user: new UsageParts(), session: new UsageParts(), token: new UsageParts() };
    hours.set(hour, parts);
  }
  for (const kind of KINDS) parts[kind].add(keyOf(line, kind), line.user, line.model, countsOf(line));
}
