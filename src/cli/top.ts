import { setTimeout as delay } from "node:timers/promises";
import { stripVTControlCharacters } from "node:util";
import { either } from "../base/clock.js";
import { isFleetError } from "../base/errors.js";
import { countOf, printable } from "../base/values/text.js";
import type { Fleet } from "../fleet/fleet.js";
import type { Overview } from "../hosts/overview.js";
import type { Stopped } from "../servers/stop.js";
import { colour } from "./render/colour.js";
import { sumsOf } from "./render/columns.js";
import { wrap } from "./render/layout.js";
import type { SortKey } from "./render/table.js";
import { PlainTranscript } from "./render/transcript.js";
import { clip, type Key, REFRESH_MS, Screen, type ScreenSize } from "./run/screen.js";
import {
  type Action,
  firstOf,
  hintsOf,
  noticesOf,
  type Page,
  type Snapshot,
  TopModel,
  tableOf,
  VIEWS,
  type ViewName,
  type ViewTable,
} from "./top-model.js";

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
    if (request?.kind === "quit") this.#quit.abort();
    if (request?.kind === "look") this.#changed.abort();
    if (request?.kind === "act") {
      const owner = this.#snapshot?.sessions.find(({ id }) => id === request.target)?.owner;
      const act = { ...request, owner, columns: this.#screen.size.columns };
      const acting = perform(this.#fleet, this.#model, act, this.#end.signal).then(() => this.#changed.abort());
      this.#actions.add(acting);
      void acting.finally(() => this.#actions.delete(acting));
    }
    this.#draw();
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

/** The page with a log shows this many of its last lines. */
const LOG_LINES = 1_000;

/** The page with a transcript shows this many of its last turns. */
const TRANSCRIPT_TURNS = 50;

const PROGRESS: Readonly<Record<Action, string>> = {
  drain: "Draining",
  restart: "Restarting",
  evict: "Evicting",
  logs: "Reading the log of",
  transcript: "Reading the transcript of",
};

interface Act {
  action: Action;
  target: string;
  /** The owner of the target; undefined if the target is not a session. */
  owner: string | undefined;
  /** The width of the screen. */
  columns: number;
}

/** Performs an action. Writes its progress, and then its outcome or its error, to `model.message`. Never rejects. */
export async function perform(fleet: Fleet, model: TopModel, act: Act, signal: AbortSignal): Promise<void> {
  model.message = `${PROGRESS[act.action]} ${act.target} …`;
  try {
    model.message = await run(fleet, model, act, signal);
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    model.message = isFleetError(error) ? `${message} [${error.code}]` : message;
  }
}

function describeStop({ id, outcome, cut }: Stopped): string {
  const cutTurns = cut.length === 0 ? "" : ` It cut ${countOf(cut.length, "turn")}: ${cut.join(", ")}.`;
  return `Server ${id}: ${outcome}.${cutTurns}`;
}

function logLines(lines: readonly string[], columns: number): string[] {
  return lines.length === 0 ? ["The log is empty."] : lines.flatMap((line) => wrap(printable(line), columns));
}

/** Resolves with the text of the outcome; null if the action opened a page instead. */
async function run(
  { servers, sessions, config }: Fleet,
  model: TopModel,
  { action, target, owner, columns }: Act,
  signal: AbortSignal,
): Promise<string | null> {
  const request = { drainTimeout: config.drain.timeoutMs, signal };
  switch (action) {
    case "drain": {
      const { stopped } = await servers.stop([target], request);
      return stopped.map(describeStop).join(" ");
    }
    case "restart": {
      const restarted = await servers.restart([target], request);
      return restarted.servers.map(({ id, state }) => `Server ${id}: ${state}.`).join(" ");
    }
    case "evict": {
      const { evicted, skipped } = await sessions.evict({ ids: [target] });
      if (evicted.length > 0) return `Session ${target}: evicted.`;
      return skipped.map(({ id, reason }) => `Session ${id}: not evicted (${reason}).`).join(" ");
    }
    case "logs": {
      const { lines, log } = await servers.logEnd(target, { lines: LOG_LINES });
      model.open(`Log of ${target}: ${log}`, logLines(lines, columns));
      return null;
    }
    case "transcript": {
      // Read the transcript as the session's owner, because top is for people who control the whole fleet.
      if (owner === undefined) return `Session ${target} does not exist any more.`;
      const { entries } = await sessions.transcript(target, { user: owner, turns: TRANSCRIPT_TURNS, signal });
      const text = new PlainTranscript();
      const lines = entries.flatMap((entry) => stripVTControlCharacters(text.entry(entry)).trimEnd().split("\n"));
      const wrapped = lines.flatMap((line) => wrap(line, columns));
      model.open(`Transcript of ${target}`, wrapped.length === 0 ? ["The session has had no turn."] : wrapped);
      return null;
    }
  }
}
