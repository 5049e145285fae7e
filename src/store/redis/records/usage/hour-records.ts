import { dayOf, hourStart, type LedgerLine } from "../../../../model/usage/usage.js";
import { type Bucket, ROW, type Sums } from "../../../usage/sums.js";
import type { Connection } from "../../link/connection.js";
import { corruptError } from "../../link/failures.js";
import type { Keys } from "../../link/keys.js";
import * as scripts from "../../scripts/usage-scripts.js";

/** Sums without the cells. */
export type Rows = Pick<Sums, "buckets" | "rows">;

/** The cells of a day. */
export interface DayCells {
  version: string;
  cells: string[];
}

/** An hour of the ledger, as it is at one moment. */
export interface HourState {
  version: string;
  /** How many of its lines are added up, and to how many cells of the day the sums refer. */
  added: number;
  cells: number;
  /** The sums of the hour, and those of each minute. Null if there are none, or if they were not asked for. */
  hour: Rows | null;
  minutes: Rows | null;
  /** The lines that are not added up. */
  rest: LedgerLine[];
}

/** Reads the hours of the ledger in Redis. */
export class HourRecords {
  readonly #connection: Connection;
  readonly #keys: Keys;

  constructor(connection: Connection, keys: Keys) {
    this.#connection = connection;
    this.#keys = keys;
  }

  /** @param key the sorted set of hours */
  async between(key: string, first: number, last: number): Promise<number[]> {
    const [, ...hours] = await this.#connection.run(scripts.USAGE_HOURS, [key], [first, last]);
    return hours.map(Number);
  }

  keysOf(hour: number): [sums: string, lines: string] {
    return [this.#keys.usageSums(hour), this.#keys.usageLines(hour)];
  }

  /** The key of the cells of the day of an hour. */
  cellsKey(hour: number): string {
    return this.#keys.usageCells(dayOf(hourStart(hour)));
  }

  /** @param wanted the sums that are read */
  async read(number: number, wanted: readonly ("hour" | "minutes")[]): Promise<HourState> {
    const answer = await this.#connection.run(scripts.USAGE_HOUR, this.keysOf(number), wanted);
    const [, version, added, cells, texts, rest] = answer as [string, string, string, string, string[], string[]];
    const rowsOf = (name: "hour" | "minutes") => this.#rowsOf(number, texts[wanted.indexOf(name)] ?? "");
    return {
      version,
      added: Number(added),
      cells: Number(cells),
      hour: rowsOf("hour"),
      minutes: rowsOf("minutes"),
      rest: parsed(rest),
    };
  }

  #rowsOf(number: number, text: string): Rows | null {
    if (text === "") return null;
    try {
      const { buckets, rows } = JSON.parse(text) as Pick<Sums, "buckets"> & { rows: (number | null)[] };
      if (rows.length % ROW !== 0) throw new RangeError("a row is incomplete");
      const numbers = new Float64Array(rows.length);
      for (let at = 0; at < rows.length; at++) numbers[at] = rows[at] ?? Number.NaN;
      return { buckets, rows: numbers };
    } catch (error) {
      throw corruptError(this.#keys.usageSums(number), "it does not contain sums of the ledger", error);
    }
  }

  /** The cells of the day of an hour. */
  async cellsOf(hour: number): Promise<DayCells> {
    const [, version, text] = await this.#connection.run(scripts.USAGE_CELLS, [this.cellsKey(hour)], []);
    return { version: String(version), cells: String(text).split("\n").slice(0, -1) };
  }

  /**
   * @param ranges those of each bucket, by index
   * @returns the lines of each bucket; null if the hour has another version
   */
  async linesOf(number: number, version: string, ranges: readonly Bucket["ranges"][]): Promise<string[][] | null> {
    const found: string[][] = [];
    for (const each of ranges) {
      const ends = each.flatMap(([from, to]) => [from, Number.isFinite(to) ? to - 1 : -1]);
      const [word, ...lines] = await this.#connection.run(scripts.USAGE_LINES, this.keysOf(number), [version, ...ends]);
      if (word === "changed") return null;
      found.push(lines.map(String));
    }
    return found;
  }
}

export function parsed(lines: readonly string[]): LedgerLine[] {
  return lines.map((text) => JSON.parse(text) as LedgerLine);
}
