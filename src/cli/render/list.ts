import { compareText, printable } from "../../base/values/text.js";
import { type Cell, type FittingColumn, renderTable } from "./table.js";

/** The formats of a list. `cli/standard-flags.ts` turns `--output json` into `--json`. */
export const FORMATS = ["table", "wide", "json", "yaml", "name", "csv"] as const;
export type Format = (typeof FORMATS)[number];

type Value = string | number | null;

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
  /** Returns the text in a table. Default: the value. */
  cell?: (row: Row) => Cell;
  /** The column is in `wide`, but not in `table`. */
  wide?: true;
  /** `table` shows the column only if this holds for at least one row. */
  when?: (row: Row) => boolean;
  /** The value is a date, but the table shows an age. So ascending order puts the newest date first. */
  isAge?: true;
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
  const sign = descending === (column.isAge === true) ? 1 : -1;
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
