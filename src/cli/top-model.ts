import { printable } from "../base/values/text.js";
import type { Overview } from "../hosts/overview.js";
import type { SessionView } from "../sessions/view.js";
import {
  BUSY_SERVERS,
  describeClosedPool,
  HOSTS,
  OVERVIEW_OF_USERS,
  SESSIONS,
  shownState,
  withoutHost,
} from "./render/columns.js";
import { arrange, type List, nameOf, renderList, type SortKey, valueIn } from "./render/table.js";
import { type Key, scrollSteps } from "./run/screen.js";

export const VIEWS = ["servers", "sessions", "users", "hosts"] as const;
export type ViewName = (typeof VIEWS)[number];

/** Everything that `top` shows, read at one time. */
export interface Snapshot {
  overview: Overview;
  /** Empty unless the view shows sessions, because reading sessions takes longer than reading the rest. */
  sessions: readonly SessionView[];
  warnings: readonly string[];
}

interface Selection {
  sort: SortKey | null;
  /** The view shows only rows that contain this text in any column. Upper and lower case do not matter. */
  filter: string;
}

/** A view as text. `lines[index]` shows the row with `ids[index]`. */
export interface ViewTable {
  heading: string;
  ids: string[];
  lines: string[];
  /** The number of rows without the filter. */
  total: number;
}

export function tableOf(view: ViewName, snapshot: Snapshot, selection: Selection, width: number): ViewTable {
  const { overview, sessions } = snapshot;
  const without = withoutHost(overview.hosts.map(({ name }) => name));
  switch (view) {
    case "servers":
      return table(BUSY_SERVERS, overview.servers, selection, { width, without });
    case "sessions":
      return table(sessionsIn(overview), sessions, selection, { width, without });
    case "users":
      return table(OVERVIEW_OF_USERS, overview.users, selection, { width });
    case "hosts":
      return table(HOSTS, overview.hosts, selection, { width });
  }
}

/** The names of the columns by which a view can be sorted. */
function columnsOf(view: ViewName): string[] {
  const lists = { servers: BUSY_SERVERS, sessions: SESSIONS, users: OVERVIEW_OF_USERS, hosts: HOSTS };
  return lists[view].columns.filter(({ wide }) => wide === undefined).map(nameOf);
}

/** Lines above every view. */
export function noticesOf({ overview, warnings }: Snapshot): string[] {
  const closed = describeClosedPool(overview.pool);
  return [...(closed === null ? [] : [closed]), ...warnings.map((warning) => `Warning: ${warning}`)];
}

/** The sessions as `list` shows them. A session in a turn has the state "in turn". */
function sessionsIn({ turns }: Overview): List<SessionView> {
  const busy = new Set(turns);
  const value = (session: SessionView) => (busy.has(session.id) ? "in turn" : shownState(session));
  return { ...SESSIONS, columns: SESSIONS.columns.map((each) => (each.field === "state" ? { ...each, value } : each)) };
}

function table<Row>(
  list: List<Row>,
  all: readonly Row[],
  { sort, filter }: Selection,
  layout: { width: number; without?: readonly string[] },
): ViewTable {
  const wanted = filter.toLowerCase();
  // Do not search the wide columns, such as paths, because the screen never shows them.
  const columns = list.columns.filter(({ wide }) => wide === undefined);
  const matching = all.filter((row) =>
    columns.some((column) =>
      String(valueIn(column, row) ?? "")
        .toLowerCase()
        .includes(wanted),
    ),
  );
  const rows = arrange(list, matching, { sort: sort ?? undefined });
  const [heading = "", ...lines] = renderList(list, rows, { format: "table", ...layout }).split("\n");
  return { heading, ids: rows.map(list.idOf), lines, total: all.length };
}

/** The part of a key's effect that the caller performs: end `top`, read the fleet again, or run an action. */
type Request = { kind: "quit" } | { kind: "look" } | { kind: "act"; action: Action; target: string };

/** A text that covers the view until Esc, such as a log. */
export interface Page {
  title: string;
  lines: readonly string[];
  /** The index of the first line on the screen. */
  first: number;
}

/** The input for which `top` is waiting: a filter, or the answer to a question. */
type Input = { kind: "filter" } | { kind: "confirm"; question: string; action: Action; target: string };

interface ViewState extends Selection {
  /** The id of the selected row. The selection follows the row when the order changes. */
  selected: string | null;
  /** The index of the first row on the screen. */
  first: number;
}

/** The state of the screen of `top`, and how keys change it. It does no input or output itself. */
export class TopModel {
  view: ViewName = "servers";
  page: Page | null = null;
  input: Input | null = null;
  /** The outcome of the last action. */
  message: string | null = null;
  readonly #views = Object.fromEntries(VIEWS.map((view) => [view, newState()])) as Record<ViewName, ViewState>;

  /** @param sort the initial order of the servers */
  constructor(sort: SortKey | null = null) {
    this.#views.servers.sort = sort;
  }

  get current(): ViewState {
    return this.#views[this.view];
  }

  /**
   * Handles a key. Returns the part of its effect that the caller performs; null if there is none.
   *
   * @param table the rows that the screen shows, so that a key can select one of them
   */
  press(key: Key, table: ViewTable, pageRows: number): Request | null {
    if (this.input?.kind === "confirm") return this.#answer(key, this.input);
    if (this.input?.kind === "filter") return this.#typeFilter(key);
    if (this.page !== null) return this.#readPage(key, this.page, pageRows);
    if (key.text === "q") return { kind: "quit" };
    this.message = null;
    const steps = stepsOf(key, pageRows, table.ids.length);
    if (steps !== 0) return this.#select(this.selectedIn(table) + steps, table);
    return this.#command(key, table);
  }

  /** The index of the selected row; 0 if nothing is selected or the selected row has disappeared. */
  selectedIn({ ids }: ViewTable): number {
    const { selected } = this.current;
    return selected === null ? 0 : Math.max(0, ids.indexOf(selected));
  }

  /** Shows printable lines on a page. The page is scrolled to its end, because the newest lines matter most. */
  open(title: string, lines: readonly string[]): void {
    this.page = { title, lines, first: Number.MAX_SAFE_INTEGER };
  }

  /** Scrolls so that the selected row is one of the `rows` that fit. Returns the index of the first row to show. */
  scroll(table: ViewTable, rows: number): number {
    const index = this.selectedIn(table);
    const state = this.current;
    const last = Math.max(0, table.ids.length - rows);
    state.first = Math.max(Math.min(state.first, index, last), index - rows + 1);
    return state.first;
  }

  #command(key: Key, table: ViewTable): Request | null {
    const { text, name } = key;
    const number = VIEWS[Number(text) - 1];
    if (name === "tab") return this.#show(VIEWS[(VIEWS.indexOf(this.view) + 1) % VIEWS.length] ?? "servers");
    if (number !== undefined) return this.#show(number);
    if (text === "/") this.input = { kind: "filter" };
    else if (name === "escape") this.current.filter = "";
    else if (text === "?" || text === "h") this.page = { title: "Keys", lines: keyLines(), first: 0 };
    else if (text === "s") this.current.sort = nextSort(this.view, this.current.sort);
    else if (text === "S") this.current.sort = reversed(this.view, this.current.sort);
    else return this.#act(key, table);
    return null;
  }

  #act(key: Key, table: ViewTable): Request | null {
    const found = actionOf(key, this.view);
    const target = table.ids[this.selectedIn(table)];
    if (found === undefined || target === undefined) return null;
    const { action, question } = found;
    if (question === undefined) return { kind: "act", action, target };
    this.input = { kind: "confirm", question: question(printable(target)), action, target };
    return null;
  }

  #answer({ text }: Key, { action, target }: Input & { kind: "confirm" }): Request | null {
    this.input = null;
    if (text === "y" || text === "Y") return { kind: "act", action, target };
    this.message = "Nothing done, because you did not answer y.";
    return null;
  }

  #typeFilter({ text, name }: Key): null {
    const state = this.current;
    if (name === "return" || name === "enter") this.input = null;
    else if (name === "escape") {
      this.input = null;
      state.filter = "";
    } else if (name === "backspace") state.filter = Array.from(state.filter).slice(0, -1).join("");
    else if (printable(text) === text) state.filter += text;
    return null;
  }

  #readPage(key: Key, page: Page, rows: number): null {
    if (key.text === "q" || key.name === "escape") this.page = null;
    else {
      page.first = firstOf(page, rows, stepsOf(key, rows, page.lines.length));
    }
    return null;
  }

  #show(view: ViewName): Request {
    this.view = view;
    return { kind: "look" };
  }

  #select(index: number, table: ViewTable): null {
    const within = Math.max(0, Math.min(table.ids.length - 1, index));
    this.current.selected = table.ids[within] ?? null;
    return null;
  }
}

/** The index of the first line that a page shows after scrolling `steps` lines down, if `rows` lines fit. */
export function firstOf({ lines, first }: Page, rows: number, steps = 0): number {
  const last = Math.max(0, lines.length - rows);
  return Math.max(0, Math.min(last, Math.min(last, first) + steps));
}

function newState(): ViewState {
  return { sort: null, filter: "", selected: null, first: 0 };
}

function nextSort(view: ViewName, sort: SortKey | null): SortKey | null {
  const columns = columnsOf(view);
  const next = columns[sort === null ? 0 : columns.indexOf(sort.column) + 1];
  return next === undefined ? null : { column: next, descending: false };
}

function reversed(view: ViewName, sort: SortKey | null): SortKey | null {
  const column = sort?.column ?? columnsOf(view)[0];
  return column === undefined ? null : { column, descending: sort?.descending !== true };
}

/** How many rows down a key moves the selection or the page; negative for up, 0 for any other key. */
function stepsOf({ name }: Key, pageRows: number, all: number): number {
  const ends: Record<string, number> = { home: -all, end: all };
  return ends[name] ?? scrollSteps(name, pageRows);
}

/** An action on the selected row. */
export type Action = "drain" | "restart" | "evict" | "logs" | "transcript";

interface ActionKey {
  action: Action;
  /** The views in which the action is possible. */
  views: readonly ViewName[];
  label: string;
  /** The question before an action that interrupts somebody; undefined for an action that only reads. */
  question?: (target: string) => string;
}

const ACTIONS: Readonly<Record<string, ActionKey>> = {
  D: {
    action: "drain",
    views: ["servers"],
    label: "drain",
    question: (target) => `Drain server ${target}? It finishes its turns, then stops.`,
  },
  R: {
    action: "restart",
    views: ["servers"],
    label: "restart",
    question: (target) => `Restart server ${target}? It finishes its turns first.`,
  },
  E: {
    action: "evict",
    views: ["sessions"],
    label: "evict",
    question: (target) => `Evict session ${target}? Its server unloads it; its history stays.`,
  },
  l: { action: "logs", views: ["servers"], label: "logs" },
  t: { action: "transcript", views: ["sessions"], label: "transcript" },
};

function actionOf({ text }: Key, view: ViewName): ActionKey | undefined {
  const found = Object.hasOwn(ACTIONS, text) ? ACTIONS[text] : undefined;
  return found?.views.includes(view) === true ? found : undefined;
}

/** The lines of the page with all keys. */
function keyLines(): string[] {
  const actions = Object.entries(ACTIONS).map(([key, { views, label }]) => [key, `${label} (in ${views.join(", ")})`]);
  const keys = [
    ["q", "ends top, or closes a page"],
    ["? h", "shows this page"],
    ["Tab", "shows the next view"],
    ["1 to 4", "shows servers, sessions, users or hosts"],
    ["↑ ↓", "selects a row, as do PgUp, PgDn, Home and End"],
    ["/", "filters the rows; Esc shows all again"],
    ["s S", "sorts by the next column; reverses the order"],
    ...actions,
  ];
  return keys.map(([key = "", effect = ""]) => `${key.padEnd(8)}${effect}`);
}

/** The last line of the screen: the keys of the view. */
export function hintsOf(view: ViewName): string {
  const actions = Object.entries(ACTIONS).filter(([, { views }]) => views.includes(view));
  return [
    "q: quit",
    "?: keys",
    "Tab: view",
    "/: filter",
    "s S: sort",
    ...actions.map(([key, { label }]) => `${key}: ${label}`),
    "↑↓: select",
  ].join("  ");
}
