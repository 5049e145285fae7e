import {
  closeSync,
  fsync,
  linkSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { systemCode } from "../../base/errors.js";
import { parseObject } from "../../base/values/text.js";
import { busyError } from "../failures.js";
import { closeQuietly, makeFolder, scratchName, syncFolder, unlinkQuietly, writeWhole } from "./durable.js";
import { readIfThere, reason } from "./failures.js";
import { ensureStateFolder } from "./state-folder.js";

const syncToDisk = promisify(fsync);
const DEADLINE_MS = 10_000;
const MAX_BACKOFF_MS = 20;
/** {@link ChainWriter.tidy} compacts the log once it has this many batches. */
const MOST_BATCHES = 64;

/**
 * Appends to this host's audit log, to which any number of processes write. A commit writes its lines to a file of
 * their own, a batch. It then links the complete file under the number of its first line (as decision 1 does for
 * records). If another process was first, `link` fails, and the commit chains its lines to the new head. So a process
 * that is killed at any moment leaves a complete batch, or nothing.
 *
 * Older batches are joined into segments and then deleted, so their numbers are free again. A process that was
 * suspended before the deletion could link such a number. So each commit checks afterwards whether its batch counts: it
 * must be the newest batch, or the next batch must be chained to it, or a segment must contain it. The newest batch is
 * never deleted.
 */
export class ChainWriter {
  readonly #files: LogFiles;
  readonly #segmentBytes: number;
  /** The head after this process's last commit. Other processes may have committed since then. */
  #head: Head | undefined;
  /** All batches up to this number are known to be on disk. */
  #synced = 0;

  constructor(root: string, { segmentBytes }: { segmentBytes: number }) {
    this.#files = new LogFiles(root);
    this.#segmentBytes = segmentBytes;
  }

  /**
   * Appends lines.
   *
   * @param build makes the lines that follow a head. Runs again if another process was first.
   * @param durable whether the lines, and all lines before them, must survive a loss of power
   * @throws a system error, or FleetError `FLEET_STATE_BUSY`, when none of the lines is in the log
   * @throws UnsyncedError when the lines are in the log, but may not survive a loss of power
   */
  async append(build: (head: Head) => { text: string; head: Head }, { durable }: { durable: boolean }): Promise<void> {
    ensureStateFolder(this.#files.root);
    makeFolder(this.#files.open);
    const until = performance.now() + DEADLINE_MS;
    for (let attempt = 0; ; attempt++) {
      const head = this.#head ?? readHead(this.#files);
      const next = build(head);
      this.#head = undefined;
      if (await this.#commit(head.seq + 1, next, durable)) {
        this.#head = next.head;
        return this.#note(next.head);
      }
      if (performance.now() > until) throw busyError(this.#files.open, "could not be changed");
      await sleep(Math.random() * Math.min(2 ** attempt, MAX_BACKOFF_MS));
    }
  }

  bytes(): number {
    return this.#files.bytes();
  }

  /** Moves batches into segments if there are many. Ignores failures, because a later call tries again. */
  async tidy(): Promise<void> {
    if (this.#files.listBatches().length < MOST_BATCHES) return;
    await compact(this.#files, this.#segmentBytes).catch(() => "later");
  }

  /** Commits a batch. @returns false when another process was first, or has removed the temporary file */
  async #commit(first: number, { text, head }: { text: string; head: Head }, durable: boolean): Promise<boolean> {
    const temp = join(this.#files.open, scratchName("tmp"));
    const fd = openSync(temp, "wx", 0o600);
    try {
      writeWhole(fd, Buffer.from(text));
      try {
        linkSync(temp, this.#files.batchPath(first));
      } catch (error) {
        // ENOENT: a sweep in another PID namespace mistook the file for that of a killed process.
        if (["EEXIST", "ENOENT"].includes(systemCode(error) ?? "")) return false;
        throw error;
      }
      return await this.#settle(fd, first, { head, durable });
    } finally {
      closeQuietly(fd);
      unlinkQuietly(temp);
    }
  }

  async #settle(fd: number, first: number, { head, durable }: { head: Head; durable: boolean }): Promise<boolean> {
    try {
      if (!this.#counts(first, head)) return false;
      if (durable) await this.#sync(fd, first);
      return true;
    } catch (error) {
      // Other processes may have read these lines, or chained lines to them, so this process cannot withdraw them.
      throw new UnsyncedError(error);
    }
  }

  /** Whether the batch that was just linked is part of the log. If not, removes it. */
  #counts(first: number, { hash }: Head): boolean {
    const batches = this.#files.listBatches();
    const at = batches.indexOf(first);
    const next = batches[at + 1];
    if (at !== -1 && next === undefined) return true;
    if (at !== -1 && next !== undefined) {
      const line = linesIn(this.#files.batchPath(next))?.[0];
      if (line !== undefined && placeOf(line)?.prev === hash) return true;
    }
    const segment = this.#files.listSegments().find((each) => each.first <= first && first <= each.last);
    if (segment !== undefined && linesIn(segment.path)?.some((line) => placeOf(line)?.hash === hash)) return true;
    unlinkQuietly(this.#files.batchPath(first));
    return false;
  }

  /** Syncs a batch and all batches before it, because a lost batch would break the chain before the durable lines. */
  async #sync(fd: number, first: number): Promise<void> {
    const before = this.#files.listBatches().filter((each) => each > this.#synced && each < first);
    await Promise.all([syncToDisk(fd), ...before.map((each) => syncFile(this.#files.batchPath(each)))]);
    await syncFolder(this.#files.open);
    this.#synced = first;
  }

  /**
   * Writes the number and the hash of the newest line to `events-head.json`. Ignores failures, because this note only
   * serves to detect that the log has lost its last lines.
   */
  #note({ seq, hash }: Head): void {
    const temp = join(this.#files.root, scratchName("tmp"));
    try {
      writeFileSync(temp, JSON.stringify({ seq, hash }), { mode: 0o600, flag: "wx" });
      renameSync(temp, this.#files.headNote);
    } catch {
      unlinkQuietly(temp);
    }
  }
}

/**
 * The head of the log: the newest line, or the line in `events-head.json` if that is later. In that case, lines were
 * lost, and the log continues after the line in the note, so that the gap stays detectable.
 */
export function readHead(files: LogFiles): Head {
  const noted = files.readNote() ?? NO_LINES;
  const found = newestLine(files);
  return noted.seq > found.seq ? noted : found;
}

function newestLine(files: LogFiles): Head {
  for (;;) {
    const batch = files.listBatches().at(-1);
    const segment = batch === undefined ? files.listSegments().at(-1) : undefined;
    if (batch === undefined && segment === undefined) return NO_LINES;
    const lines = linesIn(segment?.path ?? files.batchPath(batch ?? 0));
    if (lines === undefined) continue; // another process has moved the batch into a segment: list again
    const last = placeOf(lines.at(-1) ?? "");
    // If the last line is damaged, continue after it with a hash that no line has, so that the break is detected.
    return last ?? { seq: segment?.last ?? (batch ?? 0) + Math.max(lines.length - 1, 0), hash: "damaged" };
  }
}

async function syncFile(path: string): Promise<void> {
  const fd = readIfThere(path, () => openSync(path, "r"));
  if (fd === undefined) return; // it has become part of a segment, which is synced
  try {
    await syncToDisk(fd);
  } finally {
    closeSync(fd);
  }
}

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

/** A file of the log that was made from other files of the log. */
export interface Derived {
  path: string;
  text: string;
}

/**
 * Makes a file of the log from other files of the log. Creates the scratch file before `make` reads these files. So
 * once {@link dropDerived} has deleted all scratch files, no process can put lines that it read earlier back into the
 * log.
 *
 * @param make reads the other files; returns undefined if they are gone
 * @param place links or renames the scratch file to its path
 * @returns whether the file is in its place
 */
export async function derive(
  files: LogFiles,
  { make, place }: { make: () => Derived | undefined; place: (scratch: string, path: string) => void },
): Promise<boolean> {
  makeFolder(files.segments);
  const scratch = join(files.segments, scratchName("tmp"));
  const fd = openSync(scratch, "wx", 0o600);
  try {
    const derived = make();
    if (derived === undefined) return false;
    writeWhole(fd, Buffer.from(derived.text));
    await syncToDisk(fd);
    place(scratch, derived.path);
    await syncFolder(dirname(derived.path));
    return true;
  } catch (error) {
    if (systemCode(error) === "ENOENT") return false;
    throw error;
  } finally {
    closeQuietly(fd);
    unlinkQuietly(scratch);
  }
}

/** Cancels every {@link derive} that is under way in any process. Also removes scratch files of killed processes. */
export function dropDerived({ segments }: LogFiles): void {
  for (const name of readIfThere(segments, () => readdirSync(segments)) ?? [])
    if (name.startsWith(".tmp-")) unlinkQuietly(join(segments, name));
}

/** The time of a line is trusted once it is at least this far in the past, in milliseconds. */
const SETTLED_MS = 24 * 3_600_000;

interface Bounds {
  maxBytes: number;
  retentionMs: number;
}

/**
 * Returns the oldest segments that exceed the bounds. The newest segment is never one of them.
 *
 * The clock may jump ahead. So the age of a segment does not count from now. It counts from the newest time of a line
 * that is at least a day in the past. If the clock is wrong for less than a day, no segment becomes too old.
 *
 * @param timeOf reads the time of the last line of a file, in milliseconds since the epoch; null if it is damaged
 */
export function excess(
  files: LogFiles,
  { maxBytes, retentionMs }: Bounds,
  { nowMs, timeOf }: { nowMs: number; timeOf: (path: string) => number | null },
): Segment[] {
  const all = files.listSegments();
  const segments = all.slice(0, -1);
  const times = all.map(({ path }) => timeOf(path));
  const settled = times.filter((time): time is number => time !== null && time <= nowMs - SETTLED_MS);
  const reference = Math.max(...settled, Number.NEGATIVE_INFINITY);
  let bytes = files.bytes();
  const found: Segment[] = [];
  for (const [at, segment] of segments.entries()) {
    // If the last line of a segment is damaged, use the time of the next segment, because this one is at least as old.
    const time = times.slice(at).find((each) => each !== null) ?? null;
    const isOld = time !== null && time < reference - retentionMs;
    if (bytes <= maxBytes && !isOld) break;
    bytes -= sizeOf(segment.path);
    found.push(segment);
  }
  return found;
}

/**
 * Deletes segments, the oldest first. Call it only after the log has recorded the deletion. A purge that is replacing
 * one of these segments at the same time cannot bring the segment back.
 */
export function removeSegments(files: LogFiles, segments: readonly Segment[]): void {
  const upTo = segments.at(-1)?.last ?? 0;
  const unlink = () => {
    // Also delete segments that do not count, because they would count again once the longer segments are gone.
    for (const { path, last } of files.listAllSegments()) if (last <= upTo) unlinkQuietly(path);
  };
  unlink();
  dropDerived(files);
  unlink();
}

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
interface Segment {
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

function sizeOf(path: string): number {
  return readIfThere(path, () => statSync(path, { throwIfNoEntry: false })?.size) ?? 0;
}

function padded(seq: number): string {
  return String(seq).padStart(DIGITS, "0");
}

/** The number and the hash of a line, and the hash of the line before it; null if the line is damaged. */
function placeOf(line: string): (Head & { prev: string }) | null {
  const { seq, hash, prev } = parseObject(line) ?? {};
  return typeof seq === "number" && typeof hash === "string" && typeof prev === "string" ? { seq, hash, prev } : null;
}

/** The lines of a file; undefined if there is no such file. */
export function linesIn(path: string): string[] | undefined {
  const text = readIfThere(path, () => readFileSync(path, "utf8"));
  return text?.split("\n").filter((line) => line !== "");
}

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

/** The lines are in the log, but may not survive a loss of power. */
export class UnsyncedError extends Error {
  constructor(cause: unknown) {
    super(reason(cause), { cause });
  }
}
