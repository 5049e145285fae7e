import { EVENT_TYPES, type FleetEvent } from "../../base/event.js";
import { notRestricted } from "../../base/sandbox.js";
import { countOf, printable, printableLines } from "../../base/values/text.js";
import type { UserEntry } from "../../hosts/gather.js";
import type { BusyServer, HostView, Overview, UserView } from "../../hosts/overview.js";
import type { PurgeReceipt } from "../../hosts/purge.js";
import type { TokenView } from "../../identity/tokens.js";
import type { PoolState } from "../../servers/admission.js";
import { referenceOf, type ServerView } from "../../servers/server.js";
import type { SessionView } from "../../sessions/view.js";
import type { Listing } from "../list-command.js";
import { colour } from "./colour.js";
import {
  type List,
  renderAge,
  renderBytes,
  renderList,
  renderSince,
  renderUntil,
  SERVER,
  SESSION,
  USER,
} from "./table.js";

export const SERVERS: List<ServerView> = {
  kind: "server",
  idOf: referenceOf,
  columns: [
    { ...SERVER, field: "id" },
    { heading: "HOST", field: "hostName", yields: 2, cut: "middle" },
    { ...USER, field: "user", cell: ({ user }) => user ?? "(shared)" },
    { heading: "URL", field: "url", yields: 5 },
    { heading: "PID", field: "pid", yields: 7 },
    { heading: "STATE", field: "state", as: "state" },
    { heading: "SANDBOX", field: "sandbox", yields: 4, value: ({ sandbox }) => sandbox.mode },
    { heading: "UPTIME", field: "uptimeMs", yields: 4, as: "age" },
    { heading: "MEMORY", field: "memoryBytes", yields: 6, as: "bytes" },
    { heading: "SESSIONS", field: "sessions", yields: 1 },
    { heading: "LOADED", field: "activeSessions", yields: 3 },
    {
      heading: "NOT RESTRICTED",
      field: "sandbox.not",
      wide: true,
      value: ({ sandbox }) => notRestricted(sandbox.not),
      cell: ({ sandbox }) => colour.yellow(notRestricted(sandbox.not)),
    },
    { heading: "ISOLATION", field: "isolation", wide: true },
    { heading: "VERSION", field: "version", wide: true },
    { heading: "CRASHES", field: "crashes", wide: true },
    { heading: "HOME", field: "home", wide: true },
    { heading: "CWD", field: "cwd", wide: true },
    { heading: "LOG", field: "log", wide: true },
    { heading: "FAILURE", field: "failure", wide: true },
  ],
};

/** Renders a table of servers, with failures below it. */
export function renderServers(servers: readonly ServerView[], hosts: readonly string[] = []): string {
  const without = [...withoutHost(hosts), ...(servers.every(({ sessions }) => sessions === null) ? ["sessions"] : [])];
  return [renderList(SERVERS, servers, { format: "table", without }), ...describeFailures(servers)].join("\n");
}

/** The columns that a table leaves out: `host` if the fleet has only one host, otherwise none. */
export function withoutHost(hosts: readonly unknown[]): string[] {
  return hosts.length > 1 ? [] : ["host"];
}

/** One line for each server with a failure. If its state is `failed`, the line also names the command for its log. */
export function describeFailures(servers: readonly ServerView[]): string[] {
  return servers.flatMap((server) => {
    const { id, user, hostName, state, failure } = server;
    if (failure === null) return [];
    const named = hostName === null && user !== null ? user : referenceOf(server);
    const hint = state === "failed" ? ` (last log lines: copilotfleet logs ${named})` : "";
    return [`${id}: ${withAge(printable(failure))}${hint}`];
  });
}

function withAge(failure: string): string {
  return failure.replace(/ at (\d{4}-\d\d-\d\dT[\d:.]+Z)/, (_, at: string) => {
    return ` ${renderAge(Math.max(0, Date.now() - Date.parse(at)))} ago`;
  });
}

export function describeClosedPool({ state, reason, drainedAt }: PoolState): string | null {
  if (state === "open") return null;
  const wayOut = drainedAt === null ? "" : " Open it again: copilotfleet drain --undo";
  return `The pool is ${reason}. It takes no new servers or turns.${wayOut}`;
}

/** Warns on standard error that the pool is closed, so that scripts can still parse the table on standard output. */
export function warnOfClosedPool(pool: PoolState): void {
  const closed = describeClosedPool(pool);
  if (closed !== null) process.stderr.write(`${closed}\n`);
}

const DAY_MS = 86_400_000;

export const SESSIONS: List<SessionView> = {
  kind: "session",
  idOf: ({ id }) => id,
  columns: [
    { ...SESSION, field: "id" },
    { heading: "OWNER", field: "owner", cut: "middle" },
    { heading: "HOST", field: "host", yields: 4, cut: "middle" },
    { heading: "SERVER", field: "serverId", yields: 6, cut: "middle" },
    { heading: "STATE", field: "state", value: shownState, as: "state" },
    { heading: "AGE", field: "createdAt", yields: 5, as: "since" },
    { heading: "LAST USE", field: "lastUsedAt", yields: 1, as: "since" },
    { heading: "SIZE", field: "sizeBytes", yields: 3, as: "bytes" },
    { heading: "LEASE", field: "leaseHolder", yields: 2, cut: "middle", value: ({ lease }) => lease?.holder ?? null },
    { heading: "KIND", field: "kind", wide: true },
    { heading: "MEMBERS", field: "members", wide: true, value: ({ members }) => members.join(" ") },
    { heading: "PERSISTENCE", field: "persistence", wide: true },
    { heading: "MODEL", field: "model", wide: true },
    {
      ...{ heading: "EXPIRES", field: "expiresAt", yields: 1, as: "until" },
      when: ({ expiresAt }) => expiresAt !== null && Date.parse(expiresAt) - Date.now() < DAY_MS,
    },
    { heading: "PURPOSE", field: "purpose", wide: true },
    {
      ...{ heading: "TITLE", field: "title", cut: "end" },
      cell: ({ title }) => title && printableLines(title),
      when: ({ title }) => title !== null,
    },
  ],
};

/** The state to show: `stranded` while the host of the session is away. */
export function shownState({ state, stranded }: SessionView): string {
  return stranded ? "stranded" : state;
}

export const USERS: List<UserEntry> = {
  kind: "user",
  idOf: ({ user }) => user,
  columns: [
    { ...USER, field: "user" },
    { heading: "SESSIONS", field: "sessions" },
    { heading: "SERVERS", field: "servers" },
    { heading: "TOKENS", field: "tokens" },
    { heading: "SUSPENDED", field: "suspended", value: ({ suspended }) => suspended?.since ?? null, as: "since" },
    { heading: "REASON", field: "reason", wide: true, value: ({ suspended }) => suspended?.reason ?? null },
  ],
};

/** The receipt of a purge, for people. */
export function renderReceipt({ user, sessions, servers, tokens, bytes, remains, dryRun }: PurgeReceipt): string {
  const done = dryRun ? "Would erase" : "Erased";
  const counts = [countOf(sessions, "session"), countOf(servers, "server"), countOf(tokens, "token")].join(", ");
  const lines = [`${done} the data of ${printable(user)}: ${counts} (${renderBytes(bytes)})`];
  for (const { host, what, why } of remains) {
    lines.push(`Remains${host === null ? "" : ` on host ${printable(host)}`}: ${printable(what)}. ${printable(why)}`);
  }
  if (remains.length === 0 && !dryRun)
    lines.push("Nothing remains in the fleet. Backups and logs outside of it are yours to erase.");
  return lines.join("\n");
}

export const TOKENS: List<TokenView> = {
  kind: "token",
  idOf: ({ id }) => id,
  columns: [
    { heading: "TOKEN", field: "id", cut: "middle" },
    { ...USER, field: "user" },
    { heading: "AGE", field: "createdAt", yields: 1, as: "since" },
    { heading: "EXPIRES", field: "expiresAt", cell: renderExpiry },
    { heading: "SCOPES", field: "scopes", yields: 2, value: ({ scopes }) => scopes.join(" ") },
    { heading: "LABEL", field: "label", yields: 3 },
    { heading: "SESSION", field: "sessionId", wide: true },
    {
      ...{ heading: "LAST USE", field: "lastUsedAt", wide: true, as: "since" },
      cell: ({ lastUsedAt }) => renderSince(lastUsedAt) ?? "never",
    },
  ],
};

function renderExpiry({ expired, expiresAt }: TokenView) {
  if (expired) return "expired";
  return expiresAt === null ? "never" : renderUntil(expiresAt);
}

const TYPE_WIDTH = Math.max(...EVENT_TYPES.map((type) => type.length));

/** One line for an event: when, what, about what, by whom, and why. */
export function renderEvent({
  at,
  type,
  actor,
  user,
  sessionId,
  serverId,
  host,
  outcome,
  reason,
  detail,
}: FleetEvent): string {
  const about = [user, sessionId && `session ${sessionId}`, serverId && `server ${serverId}`];
  const by = [
    actor.user !== null && actor.user !== user ? actor.user : null,
    actor.tokenId && `token ${actor.tokenId}`,
    `${actor.via}${actor.os === null ? "" : ` as ${actor.os}`}`,
    host && `on ${host}`,
  ];
  const isUsual = outcome === "ok" || outcome === "completed";
  const how = isUsual ? reason : [outcome, reason].filter(Boolean).join(" ");
  const parts = [listed(about), `by ${listed(by)}`, how && `(${how})`, detail];
  const text = printable(parts.filter((part) => part !== null && part !== "").join("  "));
  const kind = type.padEnd(TYPE_WIDTH);
  return `${at}  ${isUsual || outcome === "aborted" ? kind : colour.red(kind)}  ${text}`;
}

function listed(parts: readonly (string | null)[]): string {
  return parts.filter((part) => part !== null && part !== "").join(", ");
}

/**
 * A table that is too wide first leaves out the columns with the highest `yields`. Two columns have other `yields` here
 * than in `ps`, because memory matters more here, and the number of sessions less.
 */
const YIELDS: Readonly<Record<string, number>> = { memoryBytes: 1, sessions: 5 };
const columns = SERVERS.columns.map((column) => ({ ...column, yields: YIELDS[column.field] ?? column.yields ?? 0 }));
const afterState = columns.findIndex(({ field }) => field === "state") + 1;

/** The list of `ps`, with two more columns: the current turns of a server and its latency. */
export const BUSY_SERVERS: List<BusyServer> = {
  ...SERVERS,
  columns: [
    ...columns.slice(0, afterState),
    { heading: "TURNS", field: "turns" },
    {
      ...{ heading: "LATENCY", field: "latencyMs", yields: 1 },
      cell: ({ latencyMs }) => (latencyMs === null ? null : `${Math.ceil(latencyMs)} ms`),
    },
    ...columns.slice(afterState),
  ],
};

export const HOSTS: List<HostView> = {
  kind: "host",
  idOf: ({ name }) => name,
  columns: [
    { heading: "HOST", field: "name", cut: "middle" },
    { heading: "STATE", field: "state", as: "state" },
    { heading: "TERM", field: "term", yields: 6 },
    { heading: "HEARTBEAT", field: "heartbeatAgeMs", yields: 4, as: "age" },
    { heading: "FRONT DOOR", field: "door", yields: 5 },
    { heading: "SERVERS", field: "servers" },
    { heading: "LOADED", field: "sessions", yields: 2 },
    { heading: "MEMORY", field: "memoryBytes", yields: 3, as: "bytes" },
  ],
};

export const OVERVIEW_OF_USERS: List<UserView> = {
  kind: "user",
  idOf: (row) => row.user,
  columns: [
    { ...USER, field: "user" },
    { heading: "SERVER", field: "state", as: "state" },
    { heading: "TURNS", field: "turns" },
    { heading: "SESSIONS", field: "sessions", yields: 1 },
    { heading: "LOADED", field: "active", yields: 3 },
    { heading: "MEMORY", field: "memoryBytes", yields: 4, as: "bytes" },
    { heading: "LAST USE", field: "lastUsedAt", yields: 2, as: "since" },
  ],
};

/** The fleet as a list of its servers. In a table, the hosts come above the servers, and totals below them. */
export function listingOf(overview: Overview): Listing<BusyServer, Overview> {
  const { hosts, servers, pool } = overview;
  return {
    rows: servers,
    resultOf: (shown) => ({ ...overview, servers: shown }),
    none: "No servers.",
    without: withoutHost(hosts.map(({ name }) => name)),
    notice: describeClosedPool(pool),
    above: [renderList(HOSTS, hosts, { format: "table" }), ""],
    below: (shown) => [...describeFailures(shown), "", ...sumsOf(overview)],
  };
}

/** Two lines with totals of the whole fleet. */
export function sumsOf({ hosts, servers, sessions, users, turns }: Overview): [string, string] {
  const running = servers.filter(({ pid }) => pid !== null).length;
  const memory = hosts.reduce((sum, { memoryBytes }) => sum + memoryBytes, 0);
  return [
    `Sessions: ${sessions.active} active, ${sessions.idle} idle   Turns: ${turns.length}`,
    `Users: ${users.length}   Servers: ${running} of ${servers.length} running   Memory: ${renderBytes(memory)}`,
  ];
}
