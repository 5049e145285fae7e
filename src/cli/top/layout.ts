import { colour } from "../render/colour.js";
import { sumsOf } from "../render/overview.js";
import { clip } from "../run/live.js";
import type { ScreenSize } from "../run/screen.js";
import { hintsOf } from "./keys.js";
import { firstOf, type Page, type TopModel } from "./model.js";
import { noticesOf, type Snapshot, tableOf, VIEWS, type ViewTable } from "./views.js";

/** Marks the selected row. Bold type is not enough, because colours may be off. */
const MARK = "> ";
const NO_MARK = "  ";

export interface Screenful {
  lines: string[];
  table: ViewTable;
  /** How many rows of the table, or lines of a page, fit on the screen. */
  room: number;
}

/** Lays out the whole screen: sums, notices, the view's rows, and at the bottom a question or the keys. */
export function layOutTop(model: TopModel, snapshot: Snapshot, { rows, columns }: ScreenSize): Screenful {
  const table = tableOf(model.view, snapshot, model.current, columns - MARK.length);
  const above = [...sumsOf(snapshot.overview), ...noticesOf(snapshot), titleOf(model, table)];
  const below = [bottomOf(model)];
  // `- 1` leaves a row for the table's heading.
  const room = Math.max(1, rows - above.length - below.length - 1);
  const middle = model.page === null ? rowsOf(model, table, room) : pageOf(model.page, room);
  const padding = Array.from({ length: Math.max(0, room + 1 - middle.length) }, () => "");
  const lines = [...above, ...middle, ...padding, ...below].slice(0, rows);
  return { lines: lines.map((line) => clip(line, columns)), table, room };
}

function rowsOf(model: TopModel, table: ViewTable, room: number): string[] {
  if (table.ids.length === 0) return [`${NO_MARK}${emptyText(model, table)}`];
  const selected = model.selectedIn(table);
  const first = model.scroll(table, room);
  const shown = table.lines.slice(first, first + room).map((line, index) => {
    return index + first === selected ? colour.bold(`${MARK}${line}`) : `${NO_MARK}${line}`;
  });
  return [`${NO_MARK}${table.heading}`, ...shown];
}

function emptyText({ view, current }: TopModel, { total }: ViewTable): string {
  return total === 0 ? `No ${view}.` : `None of ${total} ${view} contains "${current.filter}". Esc shows all.`;
}

function pageOf(page: Page, room: number): string[] {
  const { lines } = page;
  const first = firstOf(page, room);
  const shown = lines.slice(first, first + room);
  return [colour.bold(`Lines ${first + 1} to ${first + shown.length} of ${lines.length}`), ...shown];
}

/** The title of the open page. Without a page, the names of all views, and the present view's filter and order. */
function titleOf({ view, current, page }: TopModel, { ids, total }: ViewTable): string {
  if (page !== null) return page.title;
  const names = VIEWS.map((name, index) => `${index + 1} ${name === view ? colour.bold(`[${name}]`) : name}`);
  const { sort, filter } = current;
  const details = [
    filter === "" ? [] : `filter: ${filter} (${ids.length} of ${total})`,
    sort === null ? [] : `sort: ${sort.column}${sort.descending ? " descending" : ""}`,
  ];
  return [...names, ...details.flat()].join("   ");
}

function bottomOf({ view, input, page, message, current }: TopModel): string {
  if (input?.kind === "confirm") return `[y/N] ${input.question}`;
  if (input?.kind === "filter") return `Filter: ${current.filter}_   Enter: keep  Esc: show all`;
  if (page !== null) return "q Esc: back  ↑ ↓ PgUp PgDn: scroll";
  return message ?? hintsOf(view);
}
