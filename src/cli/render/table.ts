import Table from "cli-table3";
import stringWidth from "string-width";
import { compareText, printable } from "../../base/values/text.js";
import { colour } from "./colour.js";

export type Cell = string | number | null;

const GAP = "   ";
const LINES = `top top-mid top-left top-right bottom bottom-mid bottom-left bottom-right left left-mid mid mid-mid right
  right-mid`.split(/\s+/);
/** The characters of a table without lines: only a gap between columns. */
const BARE = { ...Object.fromEntries(LINES.map((line) => [line, ""])), middle: GAP };

/** `yields` and `cut` are explained at {@link renderTable}. */
interface FittingColumn {
  heading: string;
  yields?: number;
  cut?: "middle" | "end";
}

/** A column, or only its heading. */
export type Column = string | FittingColumn;

export const SESSION = { heading: "SESSION", cut: "middle" } as const;
export const SERVER = { heading: "SERVER", cut: "middle" } as const;
export const USER = { heading: "USER", cut: "middle" } as const;

/** As long as another column can be left out, no cell is cut to less than this width. */
const EASY_WIDTH = 20;
const NARROWEST = 8;

/**
 * Renders a table like `docker ps`. A missing value is shown as `-`. A column that is null is left out.
 *
 * On a terminal, each row fits on one line. First, cells of columns with `cut` are shortened to 20 characters. Then the
 * columns with the highest `yields` are left out. Then cells are shortened further. A pipe gets all columns with uncut
 * cells.
 */
export function renderTable(
  columns: readonly (Column | null)[],
  rows: readonly (readonly Cell[])[],
  width = terminalWidth(),
): string {
  const whole = columns.flatMap((column, index): FittedColumn[] => {
    if (column === null) return [];
    const { heading, yields = 0, cut } = typeof column === "string" ? { heading: column } : column;
    const cells = [colour.bold(heading), ...rows.map((row) => String(row[index] ?? "") || "-")];
    const widest = cells.reduce((most, cell) => Math.max(most, stringWidth(cell)), 0);
    return [{ cells, yields, cut, widest, least: cut === undefined ? widest : heading.length }];
  });
  const shown = fitted(whole, width);
  const table = new Table({
    chars: BARE,
    style: { "padding-left": 0, "padding-right": 0, head: [], border: [], compact: true },
  });
  for (let row = 0; row <= rows.length; row++) table.push(shown.map((cells) => cells[row] ?? ""));
  return table
    .toString()
    .split("\n")
    .map((line) => line.trimEnd())
    .join("\n");
}

/** The number of characters that fit on a line of standard output. Infinite in a pipe, or if the width is not known. */
export function terminalWidth(): number {
  const { isTTY, columns } = process.stdout;
  return isTTY === true && columns > 0 ? columns : Number.POSITIVE_INFINITY;
}

interface FittedColumn {
  /** The heading and the cells below it. */
  cells: string[];
  yields: number;
  cut: "middle" | "end" | undefined;
  /** The width of the widest cell, and the least width to which the column may be cut. */
  widest: number;
  least: number;
}

/** The cells of the columns that fit, column by column. */
function fitted(columns: readonly FittedColumn[], width: number): string[][] {
  let left = columns;
  const widthOf = ({ widest, least }: FittedColumn, limit: number) => Math.min(widest, Math.max(limit, least));
  const total = (limit: number) =>
    left.reduce((sum, column) => sum + widthOf(column, limit) + GAP.length, left.length === 0 ? 0 : -GAP.length);
  while (total(EASY_WIDTH) > width) {
    const first = left.reduce((most, column) => Math.max(most, column.yields), 0);
    if (first === 0) break;
    // If several columns have the same `yields`, leave out the rightmost.
    const leaving = left.findLastIndex(({ yields }) => yields === first);
    left = left.filter((_, index) => index !== leaving);
  }
  let limit = left.reduce((most, { widest }) => Math.max(most, widest), NARROWEST);
  while (total(limit) > width && limit > NARROWEST) limit--;
  return left.map((column) => column.cells.map((cell) => shorten(cell, widthOf(column, limit), column.cut)));
}

/** Cuts the text to a width, with `…` in the middle or at the end. Wide characters, such as Chinese, count as two. */
export function shorten(text: string, width: number, cut: "middle" | "end" | undefined): string {
  if (cut === undefined || stringWidth(text) <= width) return text;
  const characters = Array.from(new Intl.Segmenter().segment(text), ({ segment }) => segment);
  const tail = cut === "end" ? 0 : Math.floor((width - 1) / 2);
  const end = take(characters.toReversed(), tail).toReversed().join("");
  return `${take(characters, width - 1 - stringWidth(end)).join("")}…${end}`;
}

function take(characters: readonly string[], width: number): string[] {
  let left = width;
  const end = characters.findIndex((character) => {
    left -= stringWidth(character);
    return left < 0;
  });
  return end === -1 ? [...characters] : characters.slice(0, end);
}

const GOOD = new Set(["ready", "active", "drained", "ok"]);
const BAD = new Set(["failed", "unhealthy", "gone", "killed"]);

export function renderState(state: string): string;
export function renderState(state: string | null): string | null;
export function renderState(state: string | null): string | null {
  if (state === null) return null;
  if (GOOD.has(state)) return colour.green(state);
  return BAD.has(state) ? colour.red(state) : colour.yellow(state);
}

const UNITS = [
  ["d", 86_400_000],
  ["h", 3_600_000],
  ["m", 60_000],
  ["s", 1_000],
] as const;

/** Renders a duration for people, rounded down to the largest unit that fits. */
export function renderAge(ms: number | null): Cell {
  if (ms === null) return null;
  for (const [unit, size] of UNITS) {
    if (ms >= size) return `${Math.floor(ms / size)}${unit}`;
  }
  return "0s";
}

/** Renders the time since an ISO 8601 date. */
export function renderSince(date: string | null): Cell {
  return date === null ? null : renderAge(Math.max(0, Date.now() - Date.parse(date)));
}

/**
 * Renders the time until an ISO 8601 date. So that a new session expires "in 30d", rounds hours and days up by a
 * minute.
 */
export function renderUntil(date: string | null): Cell {
  if (date === null) return null;
  const leftMs = Date.parse(date) - Date.now();
  return leftMs > 0 ? `in ${renderAge(leftMs > 3_600_000 - 60_000 ? leftMs + 60_000 : leftMs)}` : "due";
}

export function renderBytes(bytes: number | null): Cell {
  if (bytes === null) return null;
  if (bytes < 1024) return `${bytes} B`;
  const kilobytes = bytes / 1024;
  return kilobytes < 1024 ? `${kilobytes.toFixed(1)} kB` : `${(kilobytes / 1024).toFixed(1)} MB`;
}

/** The formats of a list. `cli/command-id.ts` turns `--output json` into `--json`. */
export const FORMATS = ["table", "wide", "json", "yaml", "name", "csv"] as const;
export type Format = (typeof FORMATS)[number];

type Value = string | number | null;

/** How a table shows a value: a duration, a size, a state, or the time since or until a date. */
type Look = "age" | "bytes" | "since" | "state" | "until";

const LOOKS: Readonly<Record<Look, (value: never) => Cell>> = {
  age: renderAge,
  bytes: renderBytes,
  since: renderSince,
  state: renderState,
  until: renderUntil,
};

/** Describes a list that a command prints: its columns, and how to name its rows. */
export interface List<Row> {
  /** The kind of a row, as in `server/alice-2bd806c97f0e`. */
  kind: string;
  /** Returns the id that other commands accept for the row. */
  idOf: (row: Row) => string;
  columns: readonly ListColumn<Row>[];
}

export type ListColumn<Row> = FittingColumn & ValueOf<Row> & ColumnOptions<Row>;

/** A column shows the result of `value`; without `value`, the field of the row that `field` names. */
type ValueOf<Row> = { field: PlainField<Row>; value?: undefined } | { field: string; value: (row: Row) => Value };

type PlainField<Row> = { [Name in keyof Row & string]: Row[Name] extends Value ? Name : never }[keyof Row & string];

interface ColumnOptions<Row> {
  /** How a table shows the value. Sorting by "since" puts the newest date first, because the table shows an age. */
  as?: Look;
  /** Returns the text in a table, instead of `as`. */
  cell?: (row: Row) => Cell;
  /** The column is in `wide`, but not in `table`. */
  wide?: true;
  /** `table` shows the column only if this holds for at least one row. */
  when?: (row: Row) => boolean;
}

export interface SortKey {
  column: string;
  descending: boolean;
}

interface Layout {
  format: Exclude<Format, "json" | "yaml"> | "id";
  /** Leave out the headings. */
  headless?: boolean;
  /** The names of columns that `table` leaves out. */
  without?: readonly string[];
  /** The number of characters on a line of `table`. Default: that of the terminal. */
  width?: number;
}

/** The name of a column for `--sort`. */
export function nameOf({ heading }: { heading: string }): string {
  return heading.toLowerCase().replaceAll(" ", "-");
}

export function valueIn<Row>(column: ListColumn<Row>, row: Row): Value {
  // `PlainField` allows only fields whose value is a `Value`.
  return column.value === undefined ? (row[column.field as keyof Row] as Value) : column.value(row);
}

/** Sorts the rows, and returns the first `limit` of them. Rows without a value come last. */
export function arrange<Row>(
  list: List<Row>,
  rows: readonly Row[],
  { sort, limit }: { sort?: SortKey | undefined; limit?: number | undefined },
): Row[] {
  const column = sort && list.columns.find((each) => nameOf(each) === sort.column);
  const sorted = column === undefined ? [...rows] : rows.toSorted(comparison(column, sort?.descending === true));
  return sorted.slice(0, limit);
}

function comparison<Row>(column: ListColumn<Row>, descending: boolean): (a: Row, b: Row) => number {
  const sign = descending === (column.as === "since") ? 1 : -1;
  return (a, b) => {
    const [left, right] = [valueIn(column, a), valueIn(column, b)];
    if (left === null || right === null) return Number(left === null) - Number(right === null);
    if (typeof left === "number" && typeof right === "number") return sign * (left - right);
    return sign * compareText(String(left), String(right));
  };
}

export function renderList<Row>(list: List<Row>, rows: readonly Row[], layout: Layout): string {
  const { columns, kind, idOf } = list;
  switch (layout.format) {
    case "id":
      return rows.map(idOf).join("\n");
    case "name":
      return rows.map((row) => `${kind}/${idOf(row)}`).join("\n");
    case "csv": {
      const fields = layout.headless === true ? [] : [columns.map(({ field }) => field)];
      return renderCsv([...fields, ...rows.map((row) => columns.map((column) => valueIn(column, row)))]);
    }
    case "wide":
      return table(columns, rows, layout, Number.POSITIVE_INFINITY);
    case "table": {
      const { without = [] } = layout;
      const shown = columns.filter(
        (column) =>
          column.wide === undefined && !without.includes(nameOf(column)) && (!column.when || rows.some(column.when)),
      );
      return table(shown, rows, layout, layout.width);
    }
  }
}

function table<Row>(
  columns: readonly ListColumn<Row>[],
  rows: readonly Row[],
  { headless = false }: Layout,
  width?: number,
): string {
  const cells = rows.map((row) => columns.map((column) => cellOf(column, row)));
  const text = renderTable(columns, cells, width);
  return headless ? text.split("\n").slice(1).join("\n") : text;
}

function cellOf<Row>(column: ListColumn<Row>, row: Row): Cell {
  if (column.cell !== undefined) return column.cell(row);
  const value = valueIn(column, row);
  if (column.as !== undefined) return LOOKS[column.as](value as never);
  return typeof value === "string" ? printable(value) : value;
}

/** Characters that begin a formula. The last four are the full-width forms of the first four. */
const FORMULA = "=+\\-@\uff1d\uff0b\uff0d\uff20";

/**
 * Matches the places before a possible formula: at the beginning of a cell, and after each character that separates
 * cells in some spreadsheet or country (https://owasp.org/www-community/attacks/CSV_Injection).
 */
const BEFORE_FORMULA = new RegExp(`(^|[,;|])(?=\\s*[${FORMULA}])`, "g");

/** Renders records as RFC 4180 defines them. Each record ends with a line break. Null becomes an empty field. */
function renderCsv(records: readonly (readonly Value[])[]): string {
  return records.map((record) => `${record.map(renderField).join(",")}\r\n`).join("");
}

/** Puts an apostrophe before everything that a spreadsheet could take for a formula. `--json` shows the exact text. */
function renderField(value: Value): string {
  if (typeof value !== "string") return value === null ? "" : String(value);
  const text = printable(value).replace(BEFORE_FORMULA, "$1'");
  return /[",]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
