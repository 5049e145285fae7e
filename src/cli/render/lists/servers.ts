import { printable } from "../../../config/values/text.js";
import { notRestricted } from "../../../model/sandbox.js";
import type { PoolState } from "../../../pool/admission.js";
import { referenceOf, type ServerView } from "../../../pool/server.js";
import { colour } from "../colour.js";
import { renderAge, renderBytes, renderState, SERVER, USER } from "../table.js";
import { type List, renderList } from "./list.js";

export const SERVERS: List<ServerView> = {
  kind: "server",
  idOf: referenceOf,
  columns: [
    { ...SERVER, field: "id" },
    { heading: "HOST", field: "hostName", yields: 2, cut: "middle" },
    { ...USER, field: "user", cell: ({ user }) => user ?? "(shared)" },
    { heading: "URL", field: "url", yields: 5 },
    { heading: "PID", field: "pid", yields: 7 },
    { heading: "STATE", field: "state", cell: ({ state }) => renderState(state) },
    { heading: "SANDBOX", field: "sandbox", yields: 4, value: ({ sandbox }) => sandbox.mode },
    { heading: "UPTIME", field: "uptimeMs", yields: 4, cell: ({ uptimeMs }) => renderAge(uptimeMs) },
    { heading: "MEMORY", field: "memoryBytes", yields: 6, cell: ({ memoryBytes }) => renderBytes(memoryBytes) },
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
