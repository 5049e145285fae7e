import Table from "cli-table3";
import stringWidth from "string-width";
import { colour } from "./colour.js";

export type Cell = string | number | null;

const GAP = "   ";
const LINES = `top top-mid top-left top-right bottom bottom-mid bottom-left bottom-right left left-mid mid mid-mid right
  right-mid`.split(/\s+/);
/** The characters of a table without lines: only a gap between columns. */
const BARE = { ...Object.fromEntries(LINES.map((line) => [line, ""])), middle: GAP };

/** `yields` and `cut` are explained at {@link renderTable}. */
export interface FittingColumn {
  heading: string;
  yields?: number;
  cut?: "middle" | "end";
}

/** A column, or only its heading. */
export type Column = string | FittingColumn;

export const SESSION: FittingColumn = { heading: "SESSION", cut: "middle" };
export const SERVER: FittingColumn = { heading: "SERVER", cut: "middle" };
export const USER: FittingColumn = { heading: "USER", cut: "middle" };

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
    const cells = rows.map((row) => textOf(row[index] ?? null));
    return [{ cells: [colour.bold(heading), ...cells], heading, yields, cut }];
  });
  const fitted = fitColumns(whole, width);
  const table = new Table({
    chars: BARE,
    style: { "padding-left": 0, "padding-right": 0, head: [], border: [], compact: true },
  });
  for (let row = 0; row <= rows.length; row++) table.push(fitted.map(({ cells }) => cells[row] ?? ""));
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
  heading: string;
  yields: number;
  cut: "middle" | "end" | undefined;
}

function textOf(cell: Cell): string {
  return cell === null || cell === "" ? "-" : String(cell);
}

function fitColumns(columns: FittedColumn[], width: number): FittedColumn[] {
  let left = columns;
  while (totalOf(left.map((column) => lowest(column, EASY_WIDTH))) > width) {
    const first = left.reduce((most, column) => Math.max(most, column.yields), 0);
    if (first === 0) break;
    // If several columns have the same `yields`, leave out the rightmost.
    const leaving = left.findLastIndex(({ yields }) => yields === first);
    left = left.filter((_, index) => index !== leaving);
  }
  const widths = left.map(widthOf);
  for (let over = totalOf(widths) - width; over > 0; over--) {
    const widest = widestThatYields(left, widths, EASY_WIDTH) ?? widestThatYields(left, widths, NARROWEST);
    if (widest === undefined) break;
    widths[widest] = (widths[widest] ?? 0) - 1;
  }
  return left.map((column, index) => ({
    ...column,
    cells: column.cells.map((cell) => shorten(cell, widths[index] ?? 0, column.cut)),
  }));
}

/** The index of the widest column that can be cut without getting narrower than `than`; undefined if there is none. */
function widestThatYields(columns: readonly FittedColumn[], widths: readonly number[], than: number) {
  let widest: number | undefined;
  for (const [index, column] of columns.entries()) {
    const width = widths[index] ?? 0;
    if (width > Math.max(lowest(column, than), widest === undefined ? 0 : (widths[widest] ?? 0))) widest = index;
  }
  return widest;
}

/** The least width to which the column may be cut. Its heading is never cut. */
function lowest(column: FittedColumn, limit: number): number {
  const width = widthOf(column);
  return column.cut === undefined ? width : Math.min(width, Math.max(limit, column.heading.length));
}

function widthOf({ cells }: FittedColumn): number {
  return cells.reduce((most, cell) => Math.max(most, stringWidth(cell)), 0);
}

function totalOf(widths: readonly number[]): number {
  return widths.reduce((sum, width) => sum + width, 0) + GAP.length * Math.max(0, widths.length - 1);
}

/** Cuts the text to a width, with `…` in the middle or at the end. Wide characters, such as Chinese, count as two. */
export function shorten(text: string, width: number, cut: "middle" | "end" | undefined): string {
  if (cut === undefined || stringWidth(text) <= width) return text;
  const characters = Array.from(new Intl.Segmenter().segment(text), ({ segment }) => segment);
  const tail = cut === "end" ? 0 : Math.floor((width - 1) / 2);
  const end = take(characters.toReversed(), tail).toReversed().join("");
  return `${take(characters, width - 1 - stringWidth(end)).join("")}…${end}`;
}

/** Breaks a text without colours into lines that are at most `width` columns wide. An empty text is one empty line. */
export function wrap(text: string, width: number): string[] {
  const lines = [""];
  let used = 0;
  for (const { segment } of new Intl.Segmenter().segment(text)) {
    const needed = stringWidth(segment);
    if (used > 0 && used + needed > width) {
      lines.push("");
      used = 0;
    }
    lines[lines.length - 1] += segment;
    used += needed;
  }
  return lines;
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

export function renderState(state: string): string {
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
export function renderSince(date: string): Cell {
  return renderAge(Math.max(0, Date.now() - Date.parse(date)));
}

/** Renders the time until an ISO 8601 date. So that a new session expires "in 30d", rounds hours and days up by a minute. */
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
