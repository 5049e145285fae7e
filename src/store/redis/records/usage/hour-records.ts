import { dayOf, hourStart, type LedgerLine } from "../../../../model/usage/usage.js";
import { ROW, type Sums } from "../../../usage/sums.js";
import type { Connection } from "../../link/connection.js";
import { corruptError } from "../../link/failures.js";
import type { Keys } from "../../link/keys.js";
import * as scripts from "../../scripts/usage-scripts.js";

/** How many lines are read at once. This takes a few milliseconds. Between two parts, the process can do other work. */
const LINES_AT_ONCE = 2_000;

/** Sums without the table of cells to which their rows refer. */
export type Rows = Pick<Sums, "buckets" | "rows">;

/** The table of a day's cells. A cell is one combination of user, session, model and token, as JSON. */
export interface DayCells {
  version: string;
  /** A random id. It changes if the cells are lost and then written again. Empty if there are no cells. */
  table: string;
  cells: string[];
}

/** An hour of the ledger, as it is at one moment. */
export interface HourState {
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
export interface LinesPart {
  lines: LedgerLine[];
  texts: string[];
  /** The index of the first line in the hour's list. */
  from: number;
  /** The index after the last line. */
  end: number;
}

/** Reads the hours of the ledger in Redis. */
export class HourRecords {
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
export function textOf({ buckets, rows }: Rows): string {
  return JSON.stringify({ buckets, rows: [...rows] });
}

/** Splits the list into parts of at most `size` items. */
export function partsOf<T>(list: readonly T[], size: number): T[][] {
  return Array.from({ length: Math.ceil(list.length / size) }, (_, index) =>
    list.slice(index * size, (index + 1) * size),
  );
}
