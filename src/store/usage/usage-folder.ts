import { renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import {
  countsOf,
  dayOf,
  keyOf,
  type LedgerLine,
  type UsagePart,
  UsageParts,
  type UsageQuery,
} from "../../base/usage.js";
import { sweepFolder } from "../file/commit.js";
import { closeQuietly, scratchName, writeNewFile } from "../file/durable.js";
import { enterPolitely, mediumError } from "../file/failures.js";
import type { Renaming, UsageStore } from "../ports.js";
import { type SegmentFile, Segments } from "./segments.js";
import { type Sums, SumsFiles } from "./sums.js";

/** A process writes a line at most this long after it has chosen the segment, in milliseconds. */
export const LATE_MS = 50;
/** How long a purge waits for another purge, in milliseconds. */
const PURGE_WAIT_MS = 60_000;

/** The ledger of a fleet on one host: lines in segments, with sums beside them. */
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
    // `append` has already written the lines. Adding them up makes the next query fast.
    await this.#eachSegment(async () => undefined).catch(() => undefined);
  }

  async read(query: UsageQuery): Promise<UsagePart[]> {
    const parts = new UsageParts(query.user);
    await this.#eachSegment(async (number, segment) => await this.#addSegment(parts, { number, segment }, query));
    return parts.all;
  }

  /** Adds up the new lines of each segment, and then calls `use` with the segment. */
  async #eachSegment(use: (number: number, segment: SegmentFile) => Promise<void>): Promise<void> {
    const numbers = this.segments.numbers();
    for (const number of numbers) {
      await this.segments.using(number, async (segment) => {
        await this.#sums.extend(number, segment, { isNewest: number === numbers.at(-1) });
        await use(number, segment);
      });
      await new Promise(setImmediate);
    }
  }

  /** Adds a segment to `parts`: buckets that the query covers completely by their sums, other lines one by one. */
  async #addSegment(
    parts: UsageParts,
    { number, segment }: { number: number; segment: SegmentFile },
    query: UsageQuery,
  ): Promise<void> {
    const head = this.#sums.head(number, segment);
    if (head !== null && isOutside(head, query)) {
      await addLines(parts, segment, query, { from: head.bytes });
      return;
    }
    const sums = this.#sums.read(number, segment);
    sums?.addTo(parts, query);
    for (const { first, last, ranges } of sums?.partly(query) ?? []) {
      const { from, to } = query;
      const part = { ...query, from: Math.max(first, from), to: Math.min(last + 1, to) };
      for (const [begin, end] of ranges) await addLines(parts, segment, part, { from: begin, to: end });
    }
    await addLines(parts, segment, query, { from: sums?.end ?? 0 });
  }

  async tokensSince(user: string, from: number): Promise<number> {
    return await this.#tally.tokensSince(user, dayOf(from));
  }

  async rename(names: Renaming): Promise<void> {
    // Two purges at once would replace the same segments again and again.
    const leave = await enterPolitely(this.segments.folder, PURGE_WAIT_MS);
    try {
      this.segments.seal();
      await sleep(LATE_MS);
      await sweepFolder(this.segments.folder);
      for (const number of this.segments.numbers().slice(0, -1)) {
        let isDone = false;
        while (!isDone)
          isDone = (await this.segments.using(number, async (file) => await this.#rename(number, file, names))) ?? true;
      }
    } finally {
      await leave();
    }
  }

  /**
   * Replaces the names in a sealed segment. If this is interrupted, the next call finds the names again.
   *
   * @returns false if another purge has replaced the segment first
   */
  async #rename(number: number, segment: SegmentFile, names: Renaming): Promise<boolean> {
    const after: string[] = [];
    let isChanged = false;
    let end = 0;
    for (const piece of segment.pieces()) {
      const lines = piece.lines.map((line) => renamed(line, names));
      // A cut-off line may contain a name. Drop it, because nobody reads it.
      isChanged ||= piece.hasTorn || lines.some((line, index) => line !== piece.lines[index]);
      after.push(...lines.map((line) => `${JSON.stringify(line)}\n`));
      end = piece.end;
      await new Promise(setImmediate);
    }
    if (!isChanged && end === segment.size) {
      if (this.#sums.head(number, segment) === null) this.#sums.remove(number);
      return true;
    }
    this.#sums.remove(number);
    const temp = join(this.segments.folder, scratchName("tmp"));
    try {
      closeQuietly(await writeNewFile(temp, Buffer.from(after.join(""))));
      if (this.segments.stateOf(number).ino !== segment.ino) return false;
      renameSync(temp, this.segments.pathOf(number));
    } finally {
      rmSync(temp, { force: true });
    }
    // Remove the sums once more, because a reader may have made new ones with the old names since the first removal.
    this.#sums.remove(number);
    const late = segment.late(end);
    if (late.length > 0) this.segments.append(late.map((line) => renamed(line, names)));
    return true;
  }

  async upkeep(keepMs: number): Promise<void> {
    await sweepFolder(this.segments.folder);
    await this.segments.sealOld();
    await this.settled();
    const from = Date.now() - keepMs;
    for (const number of this.segments.numbers().slice(0, -1)) {
      const sums = await this.segments.using(number, async (segment) => this.#sums.head(number, segment));
      // If the segment has no lines, or the disk is full, there may be no sums. In that case, use the time of the last
      // write, because no line is newer.
      const last = sums?.last ?? this.segments.stateOf(number).writtenMs;
      // Lines are nearly in the order of their times, so the segments after this one are not older.
      if (last >= from) break;
      this.segments.remove(number);
    }
  }

  async close(): Promise<void> {
    await this.segments.close();
  }
}

function isOutside({ first, last }: Pick<Sums, "first" | "last">, { from, to }: UsageQuery): boolean {
  return first === null || last === null || last < from || first >= to;
}

async function addLines(
  parts: UsageParts,
  segment: SegmentFile,
  { by, from, to }: UsageQuery,
  part: { from: number; to?: number },
): Promise<void> {
  for (const { lines } of segment.pieces(part.from, part.to)) {
    for (const line of lines) {
      const at = Date.parse(line.at);
      if (at >= from && at < to) parts.add(keyOf(line, by), line.user, line.model, countsOf(line));
    }
    // Adding up many lines takes seconds, so let the process do other work in between.
    await new Promise(setImmediate);
  }
}

/** Replaces the names in a line. @returns `line` itself if it contains none of the names */
export function renamed(line: LedgerLine, names: Renaming): LedgerLine {
  const [user, sessionId] = [names.users.get(line.user), names.sessions.get(line.sessionId)];
  if (user === undefined && sessionId === undefined) return line;
  return { ...line, user: user ?? line.user, sessionId: sessionId ?? line.sessionId };
}

/** No limit counts tokens of more than a month, so tokens older than this do not matter. In milliseconds. */
const LONGEST_MS = 32 * 24 * 3_600_000;

/** The tokens of each user on each day, kept up to date by reading only what is new in the segments. */
class Tally {
  readonly #segments: Segments;
  readonly #sums: SumsFiles;
  readonly #users = new Map<string, Map<string, number>>();
  /** How far each segment has been read, in bytes. */
  readonly #read = new Map<number, { end: number; id: string }>();
  #refreshed: Promise<void> = Promise.resolve();

  constructor(segments: Segments, sums: SumsFiles) {
    this.#segments = segments;
    this.#sums = sums;
  }

  async tokensSince(user: string, day: string): Promise<number> {
    // Run one refresh after the other, so that no line is counted twice.
    this.#refreshed = this.#refreshed.catch(() => undefined).then(async () => await this.#refresh());
    await this.#refreshed;
    let tokens = 0;
    for (const [each, count] of this.#users.get(user) ?? []) if (each >= day) tokens += count;
    return tokens;
  }

  async #refresh(): Promise<void> {
    try {
      await this.#readNew();
    } catch (error) {
      // Start over. Otherwise the next refresh might stop at a segment that was read, and skip older, unread segments.
      this.#forget();
      throw error;
    }
  }

  #forget(): void {
    this.#users.clear();
    this.#read.clear();
  }

  async #readNew(): Promise<void> {
    const numbers = this.#segments.numbers();
    for (const number of numbers.toReversed()) {
      const isNewest = number === numbers.at(-1);
      const step = await this.#segments.using(number, async (file) => await this.#add(number, file, isNewest));
      if (step === "replaced") {
        // Start over, because it is not known where the first unread line is in the new file.
        this.#forget();
        await this.#readNew();
        return;
      }
      if (step === "last") return;
    }
  }

  /**
   * Adds the tokens in the new lines of a segment.
   *
   * @returns `last` if the earlier segments have nothing to add; `replaced` if a purge has replaced this segment
   */
  async #add(number: number, segment: SegmentFile, isNewest: boolean): Promise<"next" | "last" | "replaced"> {
    const known = this.#read.get(number);
    if (known !== undefined && known.id !== segment.id) return "replaced";
    // A sealed segment that has been read to its end gets no more lines, and neither do the segments before it.
    if (known?.end === segment.size && !isNewest) return "last";
    const at = known?.end ?? (await this.#addSums(number, segment, isNewest));
    // This segment is too old for any limit, so the segments before it are, too.
    if (at === null) return "last";
    const { id } = segment;
    this.#read.set(number, { end: at, id });
    for (const { lines, end } of segment.pieces(at)) {
      for (const line of lines) this.#addTokens(line.user, dayOf(line.at), tokensOf(line));
      this.#read.set(number, { end, id });
      // Adding up many lines takes seconds, so let the process do other work in between.
      await new Promise(setImmediate);
    }
    return "next";
  }

  /** Adds the tokens in a segment's sums. @returns how many bytes these cover; null if it is too old for any limit */
  async #addSums(number: number, segment: SegmentFile, isNewest: boolean): Promise<number | null> {
    await this.#sums.extend(number, segment, { isNewest });
    const head = this.#sums.head(number, segment);
    const last = head?.last ?? null;
    if (last !== null && last < Date.now() - LONGEST_MS) return null;
    const sums = this.#sums.read(number, segment);
    for (const { user, day, tokens } of sums?.tokens() ?? []) this.#addTokens(user, day, tokens);
    return sums?.end ?? 0;
  }

  #addTokens(user: string, day: string, tokens: number): void {
    if (tokens === 0) return;
    const days = this.#users.get(user) ?? new Map<string, number>();
    this.#users.set(user, days.set(day, (days.get(day) ?? 0) + tokens));
  }
}

function tokensOf({ inputTokens, outputTokens }: LedgerLine): number {
  return (inputTokens ?? 0) + (outputTokens ?? 0);
}
