import { randomBytes, randomUUID } from "node:crypto";
import { linkSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep, setImmediate as turn } from "node:timers/promises";
import { isFleetError, quote, systemCode } from "../../base/errors.js";
import {
  countsOf,
  dayOf,
  hourOf,
  hourStart,
  keyOf,
  type LedgerLine,
  UNREPORTED,
  type UsagePart,
  UsageParts,
  type UsageQuery,
} from "../../base/usage.js";
import { isDamaged } from "../failures.js";
import { scratchName, syncNow } from "../file/durable.js";
import { mediumError, readIfThere } from "../file/failures.js";
import { ensureStateFolder } from "../file/state-folder.js";
import type { Renaming, UsageStore } from "../ports.js";
import { Segments } from "../usage/segments.js";
import { type Bucket, type Cell, CellTable, ROW, Sums, SumsBuilder } from "../usage/sums.js";
import { LATE_MS, renamed } from "../usage/usage-folder.js";
import type { Connection } from "./connection.js";
import { corruptError, type Keys } from "./failures.js";
import * as scripts from "./scripts.js";

/** How many lines are read at once. This takes a few milliseconds. Between two parts, the process can do other work. */
const LINES_AT_ONCE = 2_000;

/** Sums without the table of cells to which their rows refer. */
type Rows = Pick<Sums, "buckets" | "rows">;

/**
 * The table of a day's cells. A cell is one combination of user, session, model and token, as JSON. The rows of the sums refer to
 * cells by number. So a query reads each name once, and a purge need not touch the sums.
 */
interface DayCells {
  version: string;
  /** A random id. It changes if the cells are lost and then written again. Empty if there are no cells. */
  table: string;
  cells: string[];
}

/** An hour of the ledger, as it is at one moment. */
interface HourState {
  version: string;
  /** How many lines the hour has. */
  length: number;
  /** How many of these lines have been added up, counted from the first line. */
  added: number;
  /** Whether the hour's lines and sums of minutes were deleted. Lines that it has now arrived after the deletion. */
  isOld: boolean;
  /** How many cells the day's table had when this hour's lines were last added up. */
  cells: number;
  /** The {@link DayCells.table} at that time. Empty if no lines have been added up. */
  table: string;
  /** The sums of the hour. Null if there are none, or if they were not read. */
  hour: Rows | null;
  /** The sums of the hour's minutes, in parts. Each part covers the lines that were added up together. */
  minutes: Rows[];
}

/** Some consecutive lines of an hour. */
interface LinesPart {
  lines: LedgerLine[];
  texts: string[];
  /** The index of the first line in the hour's list. */
  from: number;
  /** The index after the last line. */
  end: number;
}

/** Reads the hours of the ledger in Redis. */
class HourRecords {
  readonly #connection: Connection;
  readonly #keys: Keys;

  constructor(connection: Connection, keys: Keys) {
    this.#connection = connection;
    this.#keys = keys;
  }

  /**
   * Reads the hours from `first` to `last`, which are both included.
   *
   * @param key the Redis key of the sorted set with the hours
   */
  async between(key: string, first: number | "-inf", last: number | "+inf"): Promise<number[]> {
    const [, ...hours] = await this.#connection.run(scripts.USAGE_HOURS, [key], [first, last]);
    return hours.map(Number);
  }

  keysOf(hour: number): [sums: string, minutes: string, lines: string] {
    return [this.#keys.usageSums(hour), this.#keys.usageMinutes(hour), this.#keys.usageLines(hour)];
  }

  /** The Redis key of the usage cells for the day that contains this hour. */
  cellsKey(hour: number): string {
    return this.#keys.usageCells(dayOf(hourStart(hour)));
  }

  /** Reads the state of an hour. @param wanted which sums to read */
  async read(number: number, wanted: readonly ("hour" | "minutes")[]): Promise<HourState> {
    const [sumsKey, minutesKey, linesKey] = this.keysOf(number);
    const answer = await this.#connection.run(scripts.USAGE_HOUR, this.keysOf(number), [
      String(wanted.includes("hour")),
      String(wanted.includes("minutes")),
    ]);
    const [, fields, text, minutes, parts, length] = answer as [string, string[], string, string[], number, number];
    const [version = "", lines, cells, table = "", old, hourLength] = fields;
    const added = Number(lines);
    if (![added, Number(cells)].every(Number.isSafeInteger) || Number(hourLength) > 0 !== (table !== ""))
      throw corruptError(sumsKey, "it does not contain sums of the ledger");
    if (added > length) throw corruptError(linesKey, "it lacks lines of the ledger");
    const hasMinutes = added > 0 && old === "";
    if (parts > 0 !== hasMinutes) throw corruptError(hasMinutes ? minutesKey : sumsKey, "it lacks sums of the ledger");
    return {
      version,
      length,
      added,
      isOld: old !== "",
      cells: Number(cells),
      table,
      hour: text === "" ? null : rowsOf(text, sumsKey),
      minutes: minutes.map((each) => rowsOf(each, minutesKey)),
    };
  }

  /** The cells of the day that contains this hour. */
  async cellsOf(hour: number): Promise<DayCells> {
    const [, version, table, text] = await this.#connection.run(scripts.USAGE_CELLS, [this.cellsKey(hour)], []);
    return { version: String(version), table: String(table), cells: String(text).split("\n").slice(0, -1) };
  }

  /**
   * Reads the lines of an hour in parts, from the index `from` up to but not including the index `end`.
   *
   * @param version the version that the hour must have; null for any version
   * @yields null, and then nothing more, if the hour no longer has this version
   */
  async *lines(
    number: number,
    version: string | null,
    { from, end }: { from: number; end: number },
  ): AsyncGenerator<LinesPart | null> {
    for (let at = from; at < end; at += LINES_AT_ONCE) {
      const last = Math.min(at + LINES_AT_ONCE, end) - 1;
      const [word, texts] = await this.#connection.run(scripts.USAGE_LINES, this.keysOf(number), [
        ...(version === null ? ["any", ""] : ["version", version]),
        ...[at, last],
      ]);
      if (word === "changed") {
        yield null;
        return;
      }
      const part = texts as string[];
      const lines = part.map((text) => this.#lineOf(text, number));
      if (lines.length > 0) yield { lines, texts: part, from: at, end: at + lines.length };
    }
  }

  #lineOf(text: string, hour: number): LedgerLine {
    try {
      return JSON.parse(text) as LedgerLine;
    } catch (error) {
      throw corruptError(this.#keys.usageLines(hour), "it has a line that is not JSON", error);
    }
  }
}

function rowsOf(text: string, key: string): Rows {
  try {
    const { buckets, rows } = JSON.parse(text) as Pick<Sums, "buckets"> & { rows: (number | null)[] };
    if (!Array.isArray(buckets) || rows.length % ROW !== 0) throw new RangeError("a row or the buckets are incomplete");
    const numbers = new Float64Array(rows.length);
    for (let at = 0; at < rows.length; at++) numbers[at] = rows[at] ?? Number.NaN;
    return { buckets, rows: numbers };
  } catch (error) {
    throw corruptError(key, "it does not contain sums of the ledger", error);
  }
}

/** Converts the sums to JSON without the cells. Null stands for a number that nobody reported. */
function textOf({ buckets, rows }: Rows): string {
  return JSON.stringify({ buckets, rows: [...rows] });
}

/** Splits the list into parts of at most `size` items. */
function partsOf<T>(list: readonly T[], size: number): T[][] {
  return Array.from({ length: Math.ceil(list.length / size) }, (_, index) =>
    list.slice(index * size, (index + 1) * size),
  );
}

const MINUTE_MS = 60_000;
const HOUR_MS = 3_600_000;
/** How long an hour's lines are kept beside its sums. Later, a query for a part of the hour counts the whole hour. */
const LINES_MS = 49 * HOUR_MS;
/**
 * A process adds up new lines of the current hour only if their number exceeds both `lines` and this `share` of the
 * lines that are already added up. Each addition reads and saves all sums of the hour again, so it should be rare.
 */
const LAG = { lines: 1_000, share: 1 / 16 };
/** How long this process adds nothing up after Redis has refused a write, in milliseconds. A refusal may take seconds. */
const REFUSED_MS = 30_000;
const RENAMES_AT_ONCE = 1_000;

/** A query that is under way. */
interface Asked {
  query: UsageQuery;
  parts: UsageParts;
  /** The cells of the day that is being read, by their Redis key. */
  known: Map<string, DayCells>;
}

/**
 * The ledger lines of all hosts in Redis, grouped by hour, and their sums. A process adds up lines after it has sent
 * many, for a query, and during upkeep. If it cannot save the sums, another process adds up the same lines later.
 */
class UsageHours {
  readonly #connection: Connection;
  readonly #keys: Keys;
  readonly #records: HourRecords;
  readonly #warn: (message: string) => void;
  readonly #extending = new Map<number, Promise<void>>();
  /** Until this time, by `performance.now()`, this process adds nothing up. */
  #refusedUntil = 0;

  /** @param warn reports damaged hours */
  constructor(connection: Connection, keys: Keys, warn: (message: string) => void) {
    this.#connection = connection;
    this.#keys = keys;
    this.#records = new HourRecords(connection, keys);
    this.#warn = warn;
  }

  async addTo(parts: UsageParts, query: UsageQuery): Promise<void> {
    const hours = await this.#records.between(this.#keys.usageHours, hourOf(query.from), hourOf(query.to - 1));
    const asked = { query, parts, known: new Map<string, DayCells>() };
    let next = this.#latest(hours[0], query);
    try {
      for (const [index, hour] of hours.entries()) {
        let state = await next;
        // Send the next request now, so that Redis answers it while this process adds the current hour to the result.
        next = this.#latest(hours[index + 1], query);
        next.catch(() => undefined); // the next round throws it
        while (state !== null && !(await this.#addHour(hour, state, asked))) state = await this.#latest(hour, query);
      }
    } finally {
      await next.catch(() => undefined);
    }
  }

  /** Adds up the new lines of an hour (few lines of the current hour stay), and reads it. Null without `number`. */
  async #latest(number: number | undefined, query: UsageQuery): Promise<HourState | null> {
    if (number === undefined) return null;
    const read = async () => {
      if (isWithin(number, query)) return await this.#records.read(number, ["hour"]);
      const state = await this.#records.read(number, ["minutes"]);
      return state.isOld ? await this.#records.read(number, ["hour"]) : state;
    };
    const state = await read();
    const lag = number < hourOf(Date.now()) ? 0 : Math.max(LAG.lines, state.added * LAG.share);
    if (state.length - state.added <= lag || this.#isRefused) return state;
    await this.extend(number);
    return await read();
  }

  /** Adds an hour to the result of a query. @returns false if the hour was changed in between, and nothing was added */
  async #addHour(number: number, state: HourState, { query, parts, known }: Asked): Promise<boolean> {
    const day = await this.#cellsFor(number, state, known);
    if (day === null) return false;
    const wanted = state.isOld ? { ...query, from: hourStart(number), to: hourStart(number + 1) } : query;
    const rows = state.hour === null ? state.minutes : [state.hour];
    const sums = rows.map((each) => new Sums({ ...each, end: state.added, cells: day.cells }));
    const lines: LedgerLine[] = [];
    for (const { query: part, from, end } of [
      ...sums.flatMap((each) => each.partly(wanted).flatMap((bucket) => rangesOf(bucket, wanted))),
      { query: wanted, from: state.added, end: state.length },
    ]) {
      for await (const piece of this.#records.lines(number, state.version, { from, end })) {
        if (piece === null) return false;
        lines.push(...piece.lines.filter((line) => isWanted(line, part)));
      }
    }
    try {
      for (const each of sums) each.addTo(parts, wanted);
    } catch (error) {
      throw corruptError(this.#records.cellsKey(number), "it has a cell that cannot be read", error);
    }
    for (const line of lines) parts.add(keyOf(line, query.by), line.user, line.model, countsOf(line));
    return true;
  }

  get #isRefused(): boolean {
    return performance.now() < this.#refusedUntil;
  }

  /** Adds up an hour's new lines. Does nothing if another process has just done so, or if Redis refuses writes. */
  async extend(number: number): Promise<void> {
    let extending = this.#extending.get(number);
    if (extending === undefined) {
      extending = this.#extend(number).finally(() => this.#extending.delete(number));
      this.#extending.set(number, extending);
    }
    await extending;
  }

  async #extend(number: number): Promise<void> {
    const { length, added } = await this.#records.read(number, []);
    if (length <= added || this.#isRefused) return;
    const state = await this.#records.read(number, ["hour"]);
    const day = await this.#cellsFor(number, state);
    if (day === null) return;
    const table = new CellTable([...day.cells]);
    const before = state.hour && new Sums({ ...state.hour, end: state.added, cells: table.cells });
    const hour = new SumsBuilder(before, table, { bucketMs: HOUR_MS, merges: true });
    const minutes = new SumsBuilder(null, table, { bucketMs: MINUTE_MS });
    const waiting = { from: state.added, end: state.length };
    for await (const piece of this.#records.lines(number, state.version, waiting)) {
      if (piece === null) return;
      for (const builder of [hour, minutes]) builder.add({ ...piece, hasTorn: false });
      await turn();
    }
    const { cells } = table;
    const more = cells.slice(day.cells.length).map((cell) => `${cell}\n`);
    const sums = [textOf(hour.build()), textOf(minutes.build())];
    const [sumsKey, minutesKey] = this.#records.keysOf(number);
    const keys = [sumsKey, minutesKey, this.#records.cellsKey(number)];
    const args = [state.version, day.version, randomUUID(), state.length, ...sums, cells.length, more.join("")];
    try {
      await this.#connection.run(scripts.SAVE_SUMS, keys, args);
    } catch (error) {
      if (!isFleetError(error, "FLEET_STATE_UNWRITABLE")) throw error;
      this.#refusedUntil = performance.now() + REFUSED_MS;
    }
  }

  /** Like {@link extend}, but only warns if the hour is damaged, so that the caller can continue with other hours. */
  async extendOrWarn(number: number): Promise<void> {
    await this.#orWarn(this.extend(number));
  }

  async #orWarn(work: Promise<void>): Promise<void> {
    await work.catch((error: unknown) => {
      if (!isDamaged(error)) throw error;
      this.#warn(`Lines of the ledger are not added up. ${error.message}`);
    });
  }

  async rename(hours: readonly number[], names: Renaming): Promise<void> {
    for (const hour of hours) await this.#renameLines(hour, names);
    for (const first of new Set(hours.map(firstOfDay))) while (!(await this.#renameCells(first, names)));
  }

  /** All hours of the ledger. Some may be in the future, because the clock of a host may be wrong. */
  async all(): Promise<number[]> {
    return await this.#records.between(this.#keys.usageHours, "-inf", "+inf");
  }

  async #renameLines(number: number, names: Renaming): Promise<void> {
    const { length } = await this.#records.read(number, []);
    for await (const piece of this.#records.lines(number, null, { from: 0, end: length })) {
      const { lines, texts, from } = piece ?? { lines: [], texts: [], from: 0 };
      const changed = lines.flatMap((line, index) => {
        const after = renamed(line, names);
        return after === line ? [] : [[from + index, texts[index] ?? "", JSON.stringify(after)]];
      });
      for (const part of partsOf(changed, RENAMES_AT_ONCE))
        await this.#connection.run(scripts.RENAME_LINES, this.#records.keysOf(number), [randomUUID(), ...part.flat()]);
    }
  }

  /** Renames the cells of the day that contains this hour. @returns false if another process changed them in between */
  async #renameCells(hour: number, names: Renaming): Promise<boolean> {
    const { version, cells } = await this.#records.cellsOf(hour);
    const after = cells.map((cell) => this.#renamedCell(cell, hour, names));
    if (after.every((cell, index) => cell === cells[index])) return true;
    const args = [version, randomUUID(), after.map((cell) => `${cell}\n`).join("")];
    const [word] = await this.#connection.run(scripts.RENAME_CELLS, [this.#records.cellsKey(hour)], args);
    return word === "saved";
  }

  /** Replaces the names in a cell. @returns `cell` itself if it contains none of the names */
  #renamedCell(cell: string, hour: number, { users, sessions }: Renaming): string {
    try {
      const [user, sessionId, model, tokenId] = JSON.parse(cell) as Cell;
      if (!users.has(user) && !sessions.has(sessionId)) return cell;
      const after: Cell = [users.get(user) ?? user, sessions.get(sessionId) ?? sessionId, model, tokenId];
      return JSON.stringify(after);
    } catch (error) {
      throw corruptError(this.#records.cellsKey(hour), "it has a cell that cannot be read", error);
    }
  }

  /** Deletes hours older than `keepMs`. Adds up the lines of other past hours, and deletes them after `LINES_MS`. */
  async upkeep(keepMs: number): Promise<void> {
    const { usageHours, usageLined } = this.#keys;
    for (const hour of await this.#records.between(usageHours, "-inf", hourOf(Date.now() - keepMs) - 1))
      await this.#drop(hour);
    for (const hour of await this.#records.between(usageLined, "-inf", hourOf(Date.now()) - 1)) {
      await this.extendOrWarn(hour);
      if (hourStart(hour) + LINES_MS < Date.now()) await this.#orWarn(this.#dropLines(hour));
    }
  }

  /** Deletes the lines of an hour if its sums can be read. */
  async #dropLines(hour: number): Promise<void> {
    const state = await this.#records.read(hour, ["hour"]);
    if ((await this.#cellsFor(hour, state)) === null) return;
    const keys = [...this.#records.keysOf(hour), this.#keys.usageLined];
    await this.#connection.run(scripts.DROP_LINES, keys, [hour, state.version, randomUUID()]);
  }

  async #drop(hour: number): Promise<void> {
    const { usageHours, usageLined } = this.#keys;
    const first = firstOfDay(hour);
    const keys = [usageHours, usageLined, ...this.#records.keysOf(hour), this.#records.cellsKey(hour)];
    await this.#connection.run(scripts.DROP_USAGE, keys, [hour, first, first + 23]);
  }

  /**
   * The cells of the day that contains this hour.
   *
   * @param known cells that were read before, by Redis key. They are used if they include the cells of this hour.
   * @returns null if the hour was changed in between
   */
  async #cellsFor(
    hour: number,
    { version, cells, table }: HourState,
    known = new Map<string, DayCells>(),
  ): Promise<DayCells | null> {
    const key = this.#records.cellsKey(hour);
    const isOf = (day: DayCells) => table === "" || (day.table === table && day.cells.length >= cells);
    const before = known.get(key);
    if (before !== undefined && isOf(before)) return before;
    const now = await this.#records.cellsOf(hour);
    known.clear(); // the hours of a query are in order, so nobody needs the cells of an earlier day
    known.set(key, now);
    if (isOf(now)) return now;
    // The upkeep may have deleted the cells together with the last hour of the day. Then this hour has changed, too.
    if ((await this.#records.read(hour, [])).version !== version) return null;
    throw corruptError(key, "it does not have the cells to which sums of the ledger refer");
  }
}

/** The first hour of the same day (UTC). */
function firstOfDay(hour: number): number {
  return Math.floor(hour / 24) * 24;
}

/** Whether the query covers the whole hour. */
function isWithin(hour: number, { from, to }: UsageQuery): boolean {
  return hourStart(hour) >= from && hourStart(hour + 1) <= to;
}

function isWanted(line: LedgerLine, { from, to }: UsageQuery): boolean {
  const at = Date.parse(line.at);
  return at >= from && at < to;
}

/** For a bucket that the query covers only partly, returns the parts of the hour's list that contain its lines. */
function rangesOf({ first, last, ranges }: Bucket, query: UsageQuery) {
  const part = { ...query, from: Math.max(first, query.from), to: Math.min(last + 1, query.to) };
  return ranges.map(([from, end]) => ({ query: part, from, end }));
}

/** How long the tokens of a day are kept, in milliseconds. No limit counts tokens for longer than a month. */
const TOKENS_MS = 33 * 24 * HOUR_MS;
/** How long a line may wait before it is sent, in milliseconds. */
const JOIN_MS = 50;

/**
 * The ledger of all hosts. Each host first writes its lines to segments on its disk, and then sends them to Redis in
 * order. Any process of the host can send them, so nothing is lost if a process dies.
 */
export class UsageSums implements UsageStore {
  readonly #connection: Connection;
  readonly #keys: Keys;
  readonly #segments: Segments;
  readonly #hours: UsageHours;
  readonly #warn: (message: string) => void;
  /** How many bytes of each segment Redis has counted, as far as this process knows. */
  readonly #counted = new Map<string, number>();
  readonly #addingUp = new Set<Promise<void>>();
  #running: Promise<void> = Promise.resolve();
  /** A run of `#sendAll` that has not begun, because it waits for the run before it. */
  #next: Promise<void> | undefined;
  #soon: NodeJS.Timeout | undefined;

  /** @param warn receives a message when lines or amounts do not count */
  constructor(connection: Connection, keys: Keys, root: string, warn: (message: string) => void) {
    this.#connection = connection;
    this.#keys = keys;
    this.#warn = warn;
    this.#hours = new UsageHours(connection, keys, warn);
    this.#segments = new Segments(join(root, "usage"), () => ensureStateFolder(root));
  }

  append(lines: readonly LedgerLine[]): number {
    try {
      return this.#segments.append(lines);
    } catch (error) {
      throw mediumError("write", this.#segments.folder, error);
    } finally {
      // Wait a moment, so that the lines of one turn are sent together.
      this.#soon ??= setTimeout(() => void this.settled(), JOIN_MS).unref();
    }
  }

  async settled(): Promise<void> {
    // If Redis does not accept the lines, they stay on the disk, and a later call sends them.
    await this.#send().catch((error: unknown) => {
      const wait = `Lines of the ledger do not count, and wait in ${quote(this.#segments.folder)}.`;
      if (isDamaged(error)) this.#warn(`${wait} ${error.message}`);
    });
  }

  /** Sends the lines on disk. Calls during a run share the next run, because the current run may miss their lines. */
  async #send(): Promise<void> {
    clearTimeout(this.#soon);
    this.#soon = undefined;
    if (this.#next === undefined) {
      this.#next = this.#running.catch(() => undefined).then(async () => await this.#sendAll());
      this.#running = this.#next;
    }
    await this.#next;
  }

  async #sendAll(): Promise<void> {
    this.#next = undefined;
    let damage: unknown;
    for (const number of this.#segments.numbers()) {
      try {
        await this.#sendSegment(number);
      } catch (error) {
        if (!isDamaged(error)) throw error;
        damage ??= error; // later segments may have no line for the damaged key
      }
    }
    if (damage !== undefined) throw damage;
  }

  async #sendSegment(number: number): Promise<void> {
    const { size } = this.#segments.stateOf(number);
    const name = this.#nameOf(number);
    let at = this.#counted.get(name);
    if (at === size) return;
    at ??= Number((await this.#connection.run(scripts.USAGE_READ, [this.#keys.usageRead], [name]))[1]);
    this.#counted.set(name, at);
    await this.#segments.using(number, async (segment) => {
      for (;;) {
        const [piece] = segment.pieces(this.#counted.get(name));
        if (piece === undefined) return;
        const { keys, hours } = this.#partOf(soundLines(piece.lines, this.#warn));
        const { usageRead, usageHours, usageLined } = this.#keys;
        const [, counted, damaged, behind] = await this.#connection.run(
          scripts.COUNT_USAGE,
          [usageRead, usageHours, usageLined, ...keys],
          [name, piece.from, piece.end, JSON.stringify(hours), LAG.lines, LAG.share, randomUUID()],
        );
        this.#counted.set(name, Number(counted));
        for (const key of damaged as string[])
          this.#warn(`The ledger leaves out amounts, because ${quote(key)} in Redis is damaged.`);
        for (const hour of behind as string[]) this.#addUpLater(Number(hour));
      }
    });
  }

  /** Adds up an hour in the background. Budget checks do not wait for it, because they read only the token counts. */
  #addUpLater(hour: number): void {
    const addingUp = this.#hours
      .extendOrWarn(hour)
      .catch(() => undefined) // a query or the upkeep adds it up later
      .finally(() => this.#addingUp.delete(addingUp));
    this.#addingUp.add(addingUp);
  }

  /** The lines and tokens that `COUNT_USAGE` adds. Numbers are texts, because Lua would round large numbers. */
  #partOf(lines: readonly LedgerLine[]) {
    const byHour = new Map<number, LedgerLine[]>();
    for (const line of lines) {
      const those = byHour.get(hourOf(line.at));
      if (those === undefined) byHour.set(hourOf(line.at), [line]);
      else those.push(line);
    }
    const keys: string[] = [];
    const hours = [...byHour].map(([hour, those]) => {
      const tokens = new Map<string, number>();
      for (const { user, inputTokens, outputTokens } of those)
        tokens.set(user, (tokens.get(user) ?? 0) + (inputTokens ?? 0) + (outputTokens ?? 0));
      const day = dayOf(hourStart(hour));
      keys.push(this.#keys.usageSums(hour), this.#keys.usageLines(hour), this.#keys.usageTokens(day));
      return {
        hour: String(hour),
        tokens: [...tokens].map(([user, amount]) => [user, String(amount)]),
        tokensUntil: String(hourStart(hour) + TOKENS_MS),
        lines: those.map((line) => JSON.stringify(line)),
      };
    });
    return { keys, hours };
  }

  async read(query: UsageQuery): Promise<UsagePart[]> {
    await this.settled();
    const parts = new UsageParts(query.user);
    await this.#hours.addTo(parts, query);
    return parts.all;
  }

  async tokensSince(user: string, from: number): Promise<number> {
    await this.settled();
    const keys: string[] = [];
    for (let at = from; dayOf(at) <= dayOf(Date.now()); at += 24 * HOUR_MS)
      keys.push(this.#keys.usageTokens(dayOf(at)));
    const [, tokens] = await this.#connection.run(scripts.USAGE_TOKENS, keys, [user]);
    return Number(tokens);
  }

  async rename(names: Renaming): Promise<void> {
    this.#segments.seal();
    await sleep(LATE_MS);
    await this.#send();
    await this.#dropSent();
    const hours = await this.#hours.all();
    await this.#hours.rename(hours, names);
    const pairs = [...names.users].flat();
    // Rename in the days of all hours, some of which may be in the future. Also rename in all recent days, because the
    // tokens of a day may be kept for longer than its hours.
    const days = new Set(hours.map((hour) => dayOf(hourStart(hour))));
    for (let at = Date.now() - TOKENS_MS; at < Date.now() + 24 * HOUR_MS; at += 24 * HOUR_MS) days.add(dayOf(at));
    for (const day of days) {
      for (const part of partsOf(pairs, RENAMES_AT_ONCE * 2))
        await this.#connection.run(scripts.RENAME_TOKENS, [this.#keys.usageTokens(day)], part);
    }
  }

  async upkeep(keepMs: number): Promise<void> {
    await this.#segments.sealOld();
    await sleep(LATE_MS);
    await this.settled();
    await this.#dropSent();
    await this.#hours.upkeep(keepMs);
  }

  /** Deletes sealed segments, the oldest first, up to the first segment that Redis has not counted completely. */
  async #dropSent(): Promise<void> {
    for (const number of this.#segments.numbers().slice(0, -1)) {
      const name = this.#nameOf(number);
      if (this.#counted.get(name) !== this.#segments.stateOf(number).size) return;
      // This also deletes the sums beside the segment, which a fleet has if it used the file store before.
      this.#segments.remove(number);
      this.#counted.delete(name);
      await this.#connection.run(scripts.DROP_USAGE_READ, [this.#keys.usageRead], [name]);
    }
  }

  async close(): Promise<void> {
    if (this.#soon !== undefined) await this.settled();
    await this.#running.catch(() => undefined);
    await Promise.all(this.#addingUp);
    await this.#segments.close();
  }

  /** The name of a segment, unique among all hosts. It contains the random id of the folder, which may be replaced. */
  #nameOf(number: number): string {
    return `${folderIdOf(this.#segments.folder)}:${number}`;
  }
}

const AMOUNTS = Object.keys(UNREPORTED) as (keyof typeof UNREPORTED)[];

/**
 * Leaves out amounts and lines that cannot be added up, such as an amount that is not finite. Redis would refuse such a
 * line at every attempt, and all later lines would wait behind it.
 *
 * @param warn receives a message for each amount or line that is left out
 */
function soundLines(lines: readonly LedgerLine[], warn: (message: string) => void): LedgerLine[] {
  return lines.flatMap((line) => {
    const leaveOut = (what: string, value: unknown) =>
      warn(`The ledger leaves out ${what} of the ${line.kind} ${quote(line.id)}, which is ${quote(String(value))}.`);
    if (Number.isNaN(hourOf(line.at))) {
      leaveOut("the line with the time", line.at);
      return [];
    }
    const unsound = AMOUNTS.filter((name) => line[name] !== null && !isAmount(line[name]));
    for (const name of unsound) leaveOut(name, line[name]);
    return unsound.length === 0 ? [line] : [{ ...line, ...Object.fromEntries(unsound.map((name) => [name, null])) }];
  });
}

/** Whether the value can be added up. A larger number cannot, because the sum might not be finite. */
function isAmount(value: unknown): boolean {
  return typeof value === "number" && Math.abs(value) <= Number.MAX_SAFE_INTEGER;
}

/** The random id of a ledger folder. All processes get the same id, because only the first `link()` succeeds. */
function folderIdOf(folder: string): string {
  const path = join(folder, "id");
  const read = () => readIfThere(path, () => readFileSync(path, "utf8"));
  const known = read();
  if (known !== undefined) return known;
  const temp = join(folder, scratchName("tmp"));
  try {
    writeFileSync(temp, randomBytes(12).toString("hex"), { mode: 0o600, flag: "wx" });
    syncNow(temp);
    linkSync(temp, path);
    // If a power failure lost the id, the folder would get a new one, and Redis would count the same lines again.
    syncNow(folder);
  } catch (error) {
    if (systemCode(error) !== "EEXIST") throw mediumError("write", folder, error);
  } finally {
    rmSync(temp, { force: true });
  }
  return read() ?? folderIdOf(folder);
}
