import chalk from "chalk";
import Table from "cli-table3";

/** A cell: text, and how to colour it where colours are shown at all (`NO_COLOR` and pipes are honoured by chalk). */
export type Cell = string | number | null;

const BARE = {
  top: "",
  "top-mid": "",
  "top-left": "",
  "top-right": "",
  bottom: "",
  "bottom-mid": "",
  "bottom-left": "",
  "bottom-right": "",
  left: "",
  "left-mid": "",
  mid: "",
  "mid-mid": "",
  right: "",
  "right-mid": "",
  middle: "   ",
};

/** A table as `docker ps` prints it: a heading, columns, no lines. Nothing known is shown as `-`. */
export function renderTable(headings: readonly string[], rows: readonly (readonly Cell[])[]): string {
  const table = new Table({
    chars: BARE,
    style: { "padding-left": 0, "padding-right": 0, head: [], border: [], compact: true },
  });
  table.push(headings.map((heading) => chalk.bold(heading)));
  for (const row of rows) table.push(row.map((cell) => (cell === null || cell === "" ? "-" : String(cell))));
  return table
    .toString()
    .split("\n")
    .map((line) => line.trimEnd())
    .join("\n");
}

const GOOD = new Set(["ready", "active", "drained", "ok"]);
const BAD = new Set(["failed", "unhealthy", "gone", "killed"]);

export function renderState(state: string): string {
  if (GOOD.has(state)) return chalk.green(state);
  return BAD.has(state) ? chalk.red(state) : chalk.yellow(state);
}

const UNITS = [
  ["d", 86_400_000],
  ["h", 3_600_000],
  ["m", 60_000],
  ["s", 1_000],
] as const;

/** About how long, for people: the largest unit that fits. */
export function renderAge(ms: number | null): Cell {
  if (ms === null) return null;
  for (const [unit, size] of UNITS) {
    if (ms >= size) return `${Math.floor(ms / size)}${unit}`;
  }
  return "0s";
}

export function renderBytes(bytes: number | null): Cell {
  if (bytes === null) return null;
  if (bytes < 1024) return `${bytes} B`;
  const kilobytes = bytes / 1024;
  return kilobytes < 1024 ? `${kilobytes.toFixed(1)} kB` : `${(kilobytes / 1024).toFixed(1)} MB`;
}
