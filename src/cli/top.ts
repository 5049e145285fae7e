import { setTimeout as delay } from "node:timers/promises";
import { stripVTControlCharacters } from "node:util";
import { either } from "../base/clock.js";
import { isFleetError } from "../base/errors.js";
import { countOf, printable } from "../base/values/text.js";
import type { Fleet } from "../fleet/fleet.js";
import type { Overview } from "../hosts/overview.js";
import type { Stopped } from "../servers/stop.js";
import type { SessionView } from "../sessions/view.js";
import { colour } from "./render/colour.js";
import {
  BUSY_SERVERS,
  describeClosedPool,
  HOSTS,
  OVERVIEW_OF_USERS,
  SESSIONS,
  shownState,
  sumsOf,
  withoutHost,
} from "./render/columns.js";
import { wrap } from "./render/layout.js";
import { arrange, type List, nameOf, renderList, type SortKey, valueIn } from "./render/table.js";
import { PlainTranscript } from "./render/transcript.js";
import { clip, type Key, REFRESH_MS, Screen, type ScreenSize, scrollSteps } from "./run/screen.js";

/**
 * Shows the fleet on the whole terminal until the user presses q, the signal aborts, or an error occurs. Resolves with
 * the overview that it showed last. Before that, cancels actions that still run; a cancelled drain leaves its server
 * running.
 *
 * @param sort the initial order of the servers
 */
export async function showTop(fleet: Fleet, signal: AbortSignal, sort?: SortKey): Promise<Overview> {
  await using top = new Top(fleet, signal, sort);
  return await top.run();
}

class Top implements AsyncDisposable {
  readonly #fleet: Fleet;
  readonly #model: TopModel;
  readonly #screen = new Screen({ full: true });
  readonly #quit = new AbortController();
  readonly #end: ReturnType<typeof either>;
  readonly #actions = new Set<Promise<void>>();
  /** Aborts when a key or an action makes the content of the screen outdated. */
  #changed = new AbortController();
  #snapshot: Snapshot | undefined;
  /** The content of the screen; undefined until the fleet was read for the first time. */
  #shown: Screenful | undefined;

  constructor(fleet: Fleet, signal: AbortSignal, sort?: SortKey) {
    this.#fleet = fleet;
    this.#model = new TopModel(sort);
    this.#end = either(this.#quit.signal, signal);
    this.#screen.on("resize", () => this.#draw()).on("key", (key) => this.#press(key));
  }

  async run(): Promise<Overview> {
    for (;;) {
      this.#changed = new AbortController();
      this.#snapshot = await look(this.#fleet, this.#model.view);
      this.#draw();
      using pause = either(this.#changed.signal, this.#end.signal);
      await delay(REFRESH_MS, undefined, { signal: pause.signal }).catch(() => "cut short");
      if (this.#end.signal.aborted) return this.#snapshot.overview;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#quit.abort();
    this.#screen[Symbol.dispose]();
    await Promise.all(this.#actions);
    this.#end[Symbol.dispose]();
  }

  #draw(): void {
    if (this.#snapshot === undefined || this.#end.signal.aborted) return;
    this.#shown = layOutTop(this.#model, this.#snapshot, this.#screen.size);
    this.#screen.draw({ rows: this.#shown.lines, cursor: null });
  }

  #press(key: Key): void {
    if (this.#shown === undefined) {
      if (key.text === "q") this.#quit.abort();
      return;
    }
    const { table, room } = this.#shown;
    const request = this.#model.press(key, table, room);
    if (request === "quit") this.#quit.abort();
    else if (request === "look") this.#changed.abort();
    else if (request !== null) {
      const acting = this.#act(request.action, request.target).then(() => this.#changed.abort());
      this.#actions.add(acting);
      void acting.finally(() => this.#actions.delete(acting));
    }
    this.#draw();
  }

  /** Performs an action. Shows its progress, and then its outcome or its error. Never rejects. */
  async #act({ doing, run }: Action, target: string): Promise<void> {
    const model = this.#model;
    model.message = `${doing} ${target} …`;
    const owner = this.#snapshot?.sessions.find(({ id }) => id === target)?.owner;
    try {
      const done = await run(this.#fleet, target, { owner, signal: this.#end.signal });
      model.message = typeof done === "string" ? done : null;
      if (typeof done !== "string") {
        const lines = done.lines.flatMap((line) => wrap(line, this.#screen.size.columns));
        model.page = { ...done, lines, first: Number.MAX_SAFE_INTEGER };
      }
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      model.message = isFleetError(error) ? `${message} [${error.code}]` : message;
    }
  }
}

async function look(fleet: Fleet, view: ViewName): Promise<Snapshot> {
  const [overview, sessions] = await Promise.all([
    fleet.hosts.overview(),
    view === "sessions" ? fleet.sessions.list() : [],
  ]);
  // Show the warnings on the screen, because text on standard error would overwrite it.
  return { overview, sessions, warnings: fleet.takeWarnings() };
}

/** Marks the selected row. Bold type is not enough, because colours may be off. */
const MARK = "> ";
const NO_MARK = "  ";

interface Screenful {
  lines: string[];
  table: ViewTable;
  /** How many rows of the table, or lines of a page, fit on the screen. */
  room: number;
}

/** Lays out the whole screen: sums, notices, the view's rows, and at the bottom a question or the keys. */
function layOutTop(model: TopModel, snapshot: Snapshot, { rows, columns }: ScreenSize): Screenful {
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

const LISTS = { servers: BUSY_SERVERS, sessions: SESSIONS, users: OVERVIEW_OF_USERS, hosts: HOSTS };
type ViewName = keyof typeof LISTS;
const VIEWS = Object.keys(LISTS) as ViewName[];

/** Everything that `top` shows, read at one time. */
interface Snapshot {
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

function tableOf(
  view: ViewName,
  { overview, sessions }: Snapshot,
  { sort, filter }: Selection,
  width: number,
): ViewTable {
  const all: readonly object[] = { ...overview, sessions }[view];
  // The rows of a view have the type of its list.
  const list = (view === "sessions" ? sessionsIn(overview) : LISTS[view]) as unknown as List<object>;
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
  const without = view === "hosts" ? [] : withoutHost(overview.hosts);
  const [heading = "", ...lines] = renderList(list, rows, { format: "table", width, without }).split("\n");
  return { heading, ids: rows.map(list.idOf), lines, total: all.length };
}

/** The names of the columns by which a view can be sorted. */
function columnsOf(view: ViewName): string[] {
  return LISTS[view].columns.filter(({ wide }) => wide === undefined).map(nameOf);
}

/** Lines above every view. */
function noticesOf({ overview, warnings }: Snapshot): string[] {
  const closed = describeClosedPool(overview.pool);
  return [...(closed === null ? [] : [closed]), ...warnings.map((warning) => `Warning: ${warning}`)];
}

/** The sessions as `list` shows them. A session in a turn has the state "in turn". */
function sessionsIn({ turns }: Overview): List<SessionView> {
  const busy = new Set(turns);
  const value = (session: SessionView) => (busy.has(session.id) ? "in turn" : shownState(session));
  return { ...SESSIONS, columns: SESSIONS.columns.map((each) => (each.field === "state" ? { ...each, value } : each)) };
}

/** The part of a key's effect that the caller performs: end `top`, read the fleet again, or run an action. */
type Request = "quit" | "look" | { action: Action; target: string };

/** A text that covers the view until Esc, such as a log. */
interface Page {
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
    if (key.text === "q") return "quit";
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
    const action = Object.hasOwn(ACTIONS, key.text) ? ACTIONS[key.text] : undefined;
    const target = table.ids[this.selectedIn(table)];
    if (action?.view !== this.view || target === undefined) return null;
    const { question } = action;
    if (question === undefined) return { action, target };
    this.input = { kind: "confirm", question: question(printable(target)), action, target };
    return null;
  }

  #answer({ text }: Key, { action, target }: Input & { kind: "confirm" }): Request | null {
    this.input = null;
    if (text === "y" || text === "Y") return { action, target };
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
    else page.first = firstOf(page, rows, stepsOf(key, rows, page.lines.length));
    return null;
  }

  #show(view: ViewName): Request {
    this.view = view;
    return "look";
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

/** The pages with a log and with a transcript show this many of the last lines and turns. */
const [LOG_LINES, TRANSCRIPT_TURNS] = [1_000, 50];

/** An action on the selected row of a view. */
interface Action {
  view: ViewName;
  label: string;
  /** The name of the action while it runs. */
  doing: string;
  /** The question before an action that interrupts somebody; undefined for an action that only reads. */
  question?: (target: string) => string;
  /** Resolves with the text of the outcome, or with a page. */
  run: (
    fleet: Fleet,
    target: string,
    about: { owner: string | undefined; signal: AbortSignal },
  ) => Promise<string | Omit<Page, "first">>;
}

/** The actions by their keys. */
const ACTIONS: Readonly<Record<string, Action>> = {
  D: {
    view: "servers",
    label: "drain",
    doing: "Draining",
    question: (target) => `Drain server ${target}? It finishes its turns, then stops.`,
    run: async ({ servers, config }, target, { signal }) => {
      const { stopped } = await servers.stop([target], { drainTimeout: config.drain.timeoutMs, signal });
      return stopped.map(describeStop).join(" ");
    },
  },
  R: {
    view: "servers",
    label: "restart",
    doing: "Restarting",
    question: (target) => `Restart server ${target}? It finishes its turns first.`,
    run: async ({ servers, config }, target, { signal }) => {
      const restarted = await servers.restart([target], { drainTimeout: config.drain.timeoutMs, signal });
      return restarted.servers.map(({ id, state }) => `Server ${id}: ${state}.`).join(" ");
    },
  },
  E: {
    view: "sessions",
    label: "evict",
    doing: "Evicting",
    question: (target) => `Evict session ${target}? Its server unloads it; its history stays.`,
    run: async ({ sessions }, target) => {
      const { evicted, skipped } = await sessions.evict({ ids: [target] });
      if (evicted.length > 0) return `Session ${target}: evicted.`;
      return skipped.map(({ id, reason }) => `Session ${id}: not evicted (${reason}).`).join(" ");
    },
  },
  l: {
    view: "servers",
    label: "logs",
    doing: "Reading the log of",
    run: async ({ servers }, target) => {
      const { lines, log } = await servers.logEnd(target, { lines: LOG_LINES });
      return {
        title: `Log of ${target}: ${log}`,
        lines: lines.length === 0 ? ["The log is empty."] : lines.map(printable),
      };
    },
  },
  t: {
    view: "sessions",
    label: "transcript",
    doing: "Reading the transcript of",
    run: async ({ sessions }, target, { owner, signal }) => {
      // Read the transcript as the session's owner, because top is for people who control the whole fleet.
      if (owner === undefined) return `Session ${target} does not exist any more.`;
      const { entries } = await sessions.transcript(target, { user: owner, turns: TRANSCRIPT_TURNS, signal });
      const text = new PlainTranscript();
      const lines = entries.flatMap((entry) => stripVTControlCharacters(text.entry(entry)).trimEnd().split("\n"));
      return { title: `Transcript of ${target}`, lines: lines.length === 0 ? ["The session has had no turn."] : lines };
    },
  },
};

function describeStop({ id, outcome, cut }: Stopped): string {
  const cutTurns = cut.length === 0 ? "" : ` It cut ${countOf(cut.length, "turn")}: ${cut.join(", ")}.`;
  return `Server ${id}: ${outcome}.${cutTurns}`;
}

/** The lines of the page with all keys. */
function keyLines(): string[] {
  const actions = Object.entries(ACTIONS).map(([key, { view, label }]) => [key, `${label} (in ${view})`]);
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
function hintsOf(view: ViewName): string {
  const actions = Object.entries(ACTIONS).filter(([, action]) => action.view === view);
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
