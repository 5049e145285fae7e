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
import { type Cell, CellTable, Sums, SumsBuilder } from "../../../usage/sums.js";
import { renamed } from "../../../usage/usage-folder.js";
import type { Connection } from "../../link/connection.js";
import { corruptError } from "../../link/failures.js";
import type { Keys } from "../../link/keys.js";
import * as scripts from "../../scripts/usage-scripts.js";
import { type DayCells, HourRecords, type HourState, parsed, type Rows } from "./hour-records.js";

const MINUTE_MS = 60_000;
const HOUR_MS = 3_600_000;
/** How long the lines of an hour are kept beside its sums. Afterwards, a query counts the whole hour or nothing of it. */
const LINES_MS = 49 * HOUR_MS;
/** So many lines of the running hour may wait to be added up, or a sixteenth of the others. Reading them takes milliseconds. */
export const LAG = { lines: 1_000, share: 1 / 16 };
/** A process can serve others after so many lines. */
const PIECE_LINES = 500;
export const RENAMES_AT_ONCE = 1_000;

/**
 * The lines of all hosts in Redis, by hours, and their sums. Any process adds up lines: the one that has sent many, a query, and
 * the upkeep. If it is not saved, others add up the same lines.
 */
export class UsageHours {
  readonly #connection: Connection;
  readonly #keys: Keys;
  readonly #records: HourRecords;
  readonly #warn: (message: string) => void;

  /** @param warn reports damaged hours */
  constructor(connection: Connection, keys: Keys, warn: (message: string) => void) {
    this.#connection = connection;
    this.#keys = keys;
    this.#records = new HourRecords(connection, keys);
    this.#warn = warn;
  }

  async addTo(parts: UsageParts, query: UsageQuery): Promise<void> {
    const hours = await this.#records.between(this.#keys.usageHours, hourOf(query.from), hourOf(query.to - 1));
    const known = new Map<string, DayCells>();
    let next = this.#latest(hours[0], query);
    for (const [index, hour] of hours.entries()) {
      let state = await next;
      // Redis answers while this process adds up the hour before.
      next = this.#latest(hours[index + 1], query);
      next.catch(() => undefined); // the next round throws it
      while (state !== null && !(await this.#addHour(parts, query, { ...state, known, number: hour })))
        state = await this.#latest(hour, query);
    }
  }

  /** @returns null without a number */
  async #latest(number: number | undefined, query: UsageQuery): Promise<HourState | null> {
    if (number === undefined) return null;
    const read = async () => {
      if (isWithin(number, query)) return await this.#records.read(number, ["hour"]);
      const state = await this.#records.read(number, ["minutes"]);
      // The lines of an old hour were deleted, and its sums of minutes with them.
      return state.minutes === null ? await this.#records.read(number, ["hour", "minutes"]) : state;
    };
    const state = await read();
    const lag = number < hourOf(Date.now()) ? 0 : Math.max(LAG.lines, state.added * LAG.share);
    if (state.rest.length <= lag) return state;
    await this.extend(number);
    return await read();
  }

  /**
   * @param known gets the cells of the hour's day
   * @returns false if the hour was changed in between, and nothing was added
   */
  async #addHour(
    parts: UsageParts,
    query: UsageQuery,
    { number, known, ...state }: HourState & { number: number; known: Map<string, DayCells> },
  ): Promise<boolean> {
    const day = await this.#cellsFor(number, state, known);
    if (day === null) return false;
    const rows = state.minutes ?? state.hour;
    const isOld = rows === state.hour && !isWithin(number, query);
    const wanted = isOld ? { ...query, from: hourStart(number), to: hourStart(number + 1) } : query;
    const sums = rows && new Sums({ ...rows, end: state.added, cells: day.cells });
    const partly = sums?.partly(wanted) ?? [];
    const ranges = partly.map((bucket) => bucket.ranges);
    const lines = await this.#records.linesOf(number, state.version, ranges);
    if (lines === null) return false;
    sums?.addTo(parts, wanted);
    for (const [index, { first, last }] of partly.entries()) {
      const part = { ...query, from: Math.max(first, query.from), to: Math.min(last + 1, query.to) };
      addLines(parts, parsed(lines[index] ?? []), part);
    }
    addLines(parts, state.rest, query);
    return true;
  }

  /** Adds up the lines that wait. Does nothing if somebody else has just done so, or if Redis takes no writes. */
  async extend(number: number): Promise<void> {
    const state = await this.#records.read(number, ["hour", "minutes"]);
    const { version, added, hour, minutes, rest } = state;
    const day = rest.length === 0 ? null : await this.#cellsFor(number, state);
    if (day === null) return;
    const table = new CellTable([...day.cells]);
    const builder = (rows: Rows | null, bucketMs: number) => {
      const before = rows && new Sums({ ...rows, end: added, cells: table.cells });
      return new SumsBuilder(before, table, { bucketMs, merges: true });
    };
    const ofHour = builder(hour, HOUR_MS);
    // Without the deleted lines, sums of minutes would be those of the late lines alone.
    const ofMinutes = hour !== null && minutes === null ? null : builder(minutes, MINUTE_MS);
    for (const [index, lines] of partsOf(rest, PIECE_LINES).entries()) {
      const from = added + index * PIECE_LINES;
      const piece = { lines, from, end: from + lines.length, hasTorn: false };
      ofHour.add(piece);
      ofMinutes?.add(piece);
      await turn();
    }
    const sums = [ofHour, ofMinutes].map((each) => (each === null ? "" : textOf(each.build())));
    const count = table.cells.length;
    const more = table.cells.slice(day.cells.length).map((cell) => `${cell}\n`);
    const keys = [this.#keys.usageSums(number), this.#records.cellsKey(number)];
    const lines = added + rest.length;
    try {
      const args = [version, day.version, randomUUID(), lines, ...sums, count, more.join("")];
      await this.#connection.run(scripts.SAVE_SUMS, keys, args);
    } catch (error) {
      if (!isFleetError(error, "FLEET_STATE_UNWRITABLE")) throw error;
    }
  }

  /** Like {@link extend}, but warns of a damaged hour, so that others are added up. */
  async extendOrWarn(number: number): Promise<void> {
    await this.extend(number).catch((error: unknown) => {
      if (!isDamaged(error)) throw error;
      this.#warn(`Lines of the ledger are not added up. ${error.message}`);
    });
  }

  async rename(names: Renaming): Promise<void> {
    const hours = await this.#records.between(this.#keys.usageHours, 0, hourOf(Date.now()) + 1);
    for (const hour of hours) while (!(await this.#renameLines(hour, names)));
    for (const first of new Set(hours.map(firstOfDay))) while (!(await this.#renameCells(first, names)));
  }

  /** @returns false if the hour was changed by somebody else */
  async #renameLines(number: number, names: Renaming): Promise<boolean> {
    const { version } = await this.#records.read(number, []);
    const [lines] = (await this.#records.linesOf(number, version, [[[0, Number.POSITIVE_INFINITY]]])) ?? [];
    if (lines === undefined) return false;
    const changed = lines.flatMap((text, index) => {
      const line = JSON.parse(text) as LedgerLine;
      const after = renamed(line, names);
      return after === line ? [] : [[String(index), text, JSON.stringify(after)]];
    });
    for (const part of partsOf(changed, RENAMES_AT_ONCE))
      await this.#connection.run(scripts.RENAME_LINES, this.#records.keysOf(number), [randomUUID(), ...part.flat()]);
    return true;
  }

  /** @returns false if the cells of the day were changed by somebody else */
  async #renameCells(hour: number, names: Renaming): Promise<boolean> {
    const { version, cells } = await this.#records.cellsOf(hour);
    const after = cells.map((cell) => renamedCell(cell, names));
    if (after.every((cell, index) => cell === cells[index])) return true;
    const args = [version, randomUUID(), after.map((cell) => `${cell}\n`).join("")];
    const [word] = await this.#connection.run(scripts.RENAME_CELLS, [this.#records.cellsKey(hour)], args);
    return word === "saved";
  }

  /** Deletes hours that are older than this, and lines that no query needs. Adds up the others. */
  async upkeep(keepMs: number): Promise<void> {
    const { usageHours, usageLined } = this.#keys;
    for (const hour of await this.#records.between(usageHours, 0, hourOf(Date.now() - keepMs) - 1))
      await this.#drop(hour);
    for (const hour of await this.#records.between(usageLined, 0, hourOf(Date.now()) - 1)) {
      await this.extendOrWarn(hour);
      if (hourStart(hour) + LINES_MS < Date.now()) await this.#dropLines(hour);
    }
  }

  async #dropLines(hour: number): Promise<void> {
    const keys = [...this.#records.keysOf(hour), this.#keys.usageLined];
    await this.#connection.run(scripts.DROP_LINES, keys, [hour, randomUUID()]);
  }

  async #drop(hour: number): Promise<void> {
    const { usageHours, usageLined } = this.#keys;
    const first = firstOfDay(hour);
    const keys = [usageHours, usageLined, ...this.#records.keysOf(hour), this.#records.cellsKey(hour)];
    await this.#connection.run(scripts.DROP_USAGE, keys, [hour, first, first + 23]);
  }

  /**
   * The cells of the day of an hour.
   *
   * @param known earlier answers. They count if they have the cells of this hour, too.
   * @returns null if the hour was changed in between
   */
  async #cellsFor(
    hour: number,
    { version, cells }: HourState,
    known = new Map<string, DayCells>(),
  ): Promise<DayCells | null> {
    const key = this.#records.cellsKey(hour);
    const before = known.get(key);
    if (before !== undefined && before.cells.length >= cells) return before;
    const now = await this.#records.cellsOf(hour);
    known.set(key, now);
    if (now.cells.length >= cells) return now;
    // The upkeep deletes them with the last hour of the day.
    if ((await this.#records.read(hour, [])).version !== version) return null;
    throw corruptError(key, "it lacks cells of the ledger");
  }
}

/** The first hour of the same day (UTC). */
function firstOfDay(hour: number): number {
  return Math.floor(hour / 24) * 24;
}

/** Whether the query wants all lines of the hour. */
function isWithin(hour: number, { from, to }: UsageQuery): boolean {
  return hourStart(hour) >= from && hourStart(hour + 1) <= to;
}

function addLines(parts: UsageParts, lines: readonly LedgerLine[], { by, from, to }: UsageQuery): void {
  for (const line of lines) {
    const at = Date.parse(line.at);
    if (at >= from && at < to) parts.add(keyOf(line, by), line.user, line.model, countsOf(line));
  }
}

/** @returns the same cell if it has none of the names */
function renamedCell(cell: string, { users, sessions }: Renaming): string {
  const [user, sessionId, model, tokenId] = JSON.parse(cell) as Cell;
  if (!users.has(user) && !sessions.has(sessionId)) return cell;
  const after: Cell = [users.get(user) ?? user, sessions.get(sessionId) ?? sessionId, model, tokenId];
  return JSON.stringify(after);
}

/** The sums without the cells as JSON, in which null stands for a number that nobody reported. */
function textOf({ buckets, rows }: Sums): string {
  return JSON.stringify({ buckets, rows: [...rows] });
}

/** The list in parts of at most `size`. */
export function partsOf<T>(list: readonly T[], size: number): T[][] {
  return Array.from({ length: Math.ceil(list.length / size) }, (_, index) =>
    list.slice(index * size, (index + 1) * size),
  );
}
