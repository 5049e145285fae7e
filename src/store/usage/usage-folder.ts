import { appendFileSync, closeSync, fstatSync, openSync, readFileSync, readSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import {
  countsOf,
  dayOf,
  hourOf,
  hourStart,
  keyOf,
  type LedgerLine,
  type UsageBy,
  type UsagePart,
  UsageParts,
  type UsageQuery,
} from "../../model/usage/usage.js";
import { closeQuietly, scratchName, writeNewFile } from "../file/commit/durable.js";
import { sweepFolder } from "../file/commit/sweep.js";
import { mediumError } from "../file/failures.js";
import type { UsageStore } from "./port.js";
import { Segments } from "./segments.js";
import { countsIn, SumsFiles, sumsKind } from "./sums.js";
import { Tally } from "./tally.js";

/** A process writes a line within a moment after it has chosen the segment. In milliseconds. */
export const LATE_MS = 50;

/** The ledger of a fleet on one host: lines in segments, with sums beside those that are sealed. */
export class UsageFolder implements UsageStore {
  readonly segments: Segments;
  readonly #sums: SumsFiles;
  readonly #tally: Tally;

  constructor(root: string, ensureRoot: () => void) {
    this.segments = new Segments(join(root, "usage"), ensureRoot);
    this.#sums = new SumsFiles(this.segments);
    this.#tally = new Tally(this.segments, this.#sums);
  }

  append(lines: readonly LedgerLine[]): number {
    try {
      return this.segments.append(lines);
    } catch (error) {
      throw mediumError("write", this.segments.folder, error);
    }
  }

  async settled(): Promise<void> {
    // `append` has written everything.
  }

  async read(query: UsageQuery): Promise<UsagePart[]> {
    const parts = new UsageParts(query.user);
    const numbers = this.segments.numbers();
    this.#sumUp(numbers);
    for (const number of numbers) this.#addSegment(parts, number, query);
    return parts.all;
  }

  /** Adds the sums of whole hours. Reads the lines of the hours that are only partly wanted, and those after the sums. */
  #addSegment(parts: UsageParts, number: number, query: UsageQuery): void {
    const sums = this.#sums.read(number, sumsKind(query.by));
    if (sums === null) {
      this.#addLines(parts, number, query);
      return;
    }
    const isWhole = (hour: number) => hourStart(hour) >= query.from && hourStart(hour + 1) <= query.to;
    const isPart = (hour: number) => !isWhole(hour) && hourStart(hour + 1) > query.from && hourStart(hour) < query.to;
    for (const row of sums.rows) {
      const [hour, key, user, model] = row;
      if (isWhole(hour)) parts.add(wanted(query.by, { hour, key, user, model }), user, model, countsIn(row));
    }
    for (const [hour, from, to] of sums.ranges)
      if (isPart(hour)) this.#addLines(parts, number, query, { from, to, hour });
    this.#addLines(parts, number, query, { from: sums.bytes });
  }

  /** @param only a part of the segment, and the only hour of which lines count */
  #addLines(
    parts: UsageParts,
    number: number,
    { by, from, to }: UsageQuery,
    only: { from?: number; to?: number; hour?: number } = {},
  ): void {
    if (only.from !== undefined && only.to === undefined && this.segments.stateOf(number).size <= only.from) return;
    for (const line of this.segments.read(number, only.from, only.to).lines) {
      const at = Date.parse(line.at);
      if (at < from || at >= to || (only.hour !== undefined && hourOf(at) !== only.hour)) continue;
      parts.add(keyOf(line, by), line.user, line.model, countsOf(line));
    }
  }

  async tokensSince(user: string, from: number): Promise<number> {
    return this.#tally.tokensSince(user, dayOf(from));
  }

  async rename(names: ReadonlyMap<string, string>): Promise<void> {
    this.segments.seal();
    await sleep(LATE_MS);
    const numbers = this.segments.numbers();
    for (const number of numbers.slice(0, -1)) await this.#rename(number, names);
  }

  /** Replaces a sealed segment. If this is interrupted, the next call finds the names again. */
  async #rename(number: number, names: ReadonlyMap<string, string>): Promise<void> {
    const path = this.segments.pathOf(number);
    const fd = openSync(path, "r");
    try {
      const before = readFileSync(fd);
      const text = renamed(before.toString("utf8"), names);
      if (text === null) return;
      this.#sums.remove(number);
      const temp = join(this.segments.folder, scratchName("tmp"));
      closeQuietly(await writeNewFile(temp, Buffer.from(text)));
      renameSync(temp, path);
      // Readers may have made the sums in between.
      this.#sums.remove(number);
      const late = Buffer.alloc(fstatSync(fd).size - before.length);
      if (late.length > 0) appendFileSync(path, late.subarray(0, readSync(fd, late, 0, late.length, before.length)));
    } finally {
      closeSync(fd);
    }
  }

  async upkeep(keepMs: number): Promise<void> {
    await sweepFolder(this.segments.folder);
    const sealed = this.segments.numbers();
    this.#sumUp(sealed);
    const from = Date.now() - keepMs;
    for (const number of sealed.slice(0, -1)) {
      const hours = this.#sums.read(number, "user")?.ranges.map(([hour]) => hour) ?? null;
      // Lines are in order except for some, so the segments after this one are not older.
      if (hours === null || hours.some((hour) => hourStart(hour + 1) > from)) break;
      rmSync(this.segments.pathOf(number), { force: true });
      this.#sums.remove(number);
    }
  }

  async close(): Promise<void> {
    this.segments.close();
  }

  /** Makes the sums of sealed segments that have none. If the disk is full, queries read the lines. */
  #sumUp(numbers: readonly number[]): void {
    try {
      for (const number of numbers.slice(0, -1)) this.#sums.make(number);
    } catch {
      // the next call tries again
    }
  }
}

function wanted(
  by: UsageBy,
  { hour, key, user, model }: { hour: number; key: string | null; user: string; model: string | null },
): string | null {
  if (by === "day") return dayOf(hourStart(hour));
  return by === "model" ? model : by === "user" ? user : key;
}

/** @returns null if none of the names is in the text */
export function renamed(text: string, names: ReadonlyMap<string, string>): string | null {
  let result = text;
  for (const [name, other] of names) {
    // Quotes in a value are escaped, so this text is in no value.
    for (const field of ["user", "sessionId"])
      result = result.replaceAll(`,"${field}":${JSON.stringify(name)},`, () => `,"${field}":${JSON.stringify(other)},`);
  }
  return result === text ? null : result;
}
