import { randomUUID } from "node:crypto";
import { setImmediate as turn } from "node:timers/promises";
import { isFleetError } from "../../../../errors.js";
import {
  countsOf,
  hourOf,
  hourStart,
  keyOf,
  type LedgerLine,
  type UsageParts,
  type UsageQuery,
} from "../../../../model/usage/usage.js";
import { isDamaged } from "../../../failures.js";
import type { Renaming } from "../../../usage/port.js";
import { type Bucket, type Cell, CellTable, Sums, SumsBuilder } from "../../../usage/sums.js";
import { renamed } from "../../../usage/usage-folder.js";
import type { Connection } from "../../link/connection.js";
import { corruptError } from "../../link/failures.js";
import type { Keys } from "../../link/keys.js";
import * as scripts from "../../scripts/usage-scripts.js";
import { type DayCells, HourRecords, type HourState, partsOf, textOf } from "./hour-records.js";

const MINUTE_MS = 60_000;
const HOUR_MS = 3_600_000;
/** How long an hour's lines are kept beside its sums. Later, a query for a part of the hour counts the whole hour. */
const LINES_MS = 49 * HOUR_MS;
/**
 * A process adds up new lines of the current hour only if their number exceeds both `lines` and this `share` of the
 * lines that are already added up. Each addition reads and saves all sums of the hour again, so it should be rare.
 */
export const LAG = { lines: 1_000, share: 1 / 16 };
/** How long this process adds nothing up after Redis has refused a write, in milliseconds. A refusal may take seconds. */
const REFUSED_MS = 30_000;
export const RENAMES_AT_ONCE = 1_000;

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
export class UsageHours {
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
