import type { Overview } from "../../peers/overview.js";
import type { SessionView } from "../../sessions/view.js";
import { arrange, type List, nameOf, renderList, type SortKey, valueIn } from "../render/lists/list.js";
import { BUSY_SERVERS, HOSTS, USERS } from "../render/lists/overview.js";
import { describeClosedPool, withoutHost } from "../render/lists/servers.js";
import { SESSIONS, shownState } from "../render/lists/sessions.js";

export const VIEWS = ["servers", "sessions", "users", "hosts"] as const;
export type ViewName = (typeof VIEWS)[number];

/** Everything that `top` shows, read at one time. */
export interface Snapshot {
  overview: Overview;
  /** Empty unless the view shows sessions, because reading sessions takes longer than reading the rest. */
  sessions: readonly SessionView[];
  warnings: readonly string[];
}

export interface Selection {
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
      return table(USERS, overview.users, selection, { width });
    case "hosts":
      return table(HOSTS, overview.hosts, selection, { width });
  }
}

/** The names of the columns by which a view can be sorted. */
export function columnsOf(view: ViewName): string[] {
  const lists = { servers: BUSY_SERVERS, sessions: SESSIONS, users: USERS, hosts: HOSTS };
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
  const columns = SESSIONS.columns.map((column) =>
    column.field !== "state" ? column : { ...column, value: stateOf(busy), cell: cellOf(column.cell, busy) },
  );
  return { ...SESSIONS, columns };
}

function stateOf(busy: ReadonlySet<string>) {
  return (session: SessionView) => (busy.has(session.id) ? "in turn" : shownState(session));
}

function cellOf(cell: List<SessionView>["columns"][number]["cell"], busy: ReadonlySet<string>) {
  return (session: SessionView) => (busy.has(session.id) ? "in turn" : (cell?.(session) ?? null));
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
