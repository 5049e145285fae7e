import { printable } from "../../config/values/text.js";
import type { PoolState } from "../../pool/admission.js";
import type { ServerView } from "../../pool/server.js";
import { renderAge, renderBytes, renderState, renderTable, SERVER, USER } from "./table.js";

/** Renders the table for `ps`, `spawn` and `restart`, with failures below it. */
export function renderServers(servers: readonly ServerView[], hosts: readonly string[] = []): string {
  const ill = servers.flatMap(({ id, failure }) => (failure === null ? [] : [`${id}: ${printable(failure)}`]));
  return [table(servers, hosts.length > 1), ...ill].join("\n");
}

function table(servers: readonly ServerView[], withHost: boolean): string {
  const withSessions = servers.some(({ sessions }) => sessions !== null);
  return renderTable(
    [
      SERVER,
      withHost ? { heading: "HOST", yields: 2, cut: "middle" } : null,
      USER,
      { heading: "URL", yields: 5 },
      { heading: "PID", yields: 7 },
      "STATE",
      { heading: "UPTIME", yields: 4 },
      { heading: "MEMORY", yields: 6 },
      withSessions ? { heading: "SESSIONS", yields: 1 } : null,
      { heading: "LOADED", yields: 3 },
    ],
    servers.map((server) => [
      server.id,
      server.hostName,
      server.user ?? "(shared)",
      server.url,
      server.pid,
      renderState(server.state),
      renderAge(server.uptimeMs),
      renderBytes(server.memoryBytes),
      server.sessions,
      server.activeSessions,
    ]),
  );
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
