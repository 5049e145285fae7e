import { printable } from "../config/text.js";
import type { ServerView } from "../pool/server.js";
import { renderAge, renderBytes, renderState, renderTable } from "./table.js";

/** The table of servers that `ps`, `spawn` and `restart` print, and below it why servers are not well. */
export function renderServers(servers: readonly ServerView[]): string {
  const ill = servers.flatMap(({ id, failure }) => (failure === null ? [] : [`${id}: ${printable(failure)}`]));
  return [table(servers), ...ill].join("\n");
}

function table(servers: readonly ServerView[]): string {
  return renderTable(
    ["SERVER", "USER", "URL", "PID", "STATE", "UPTIME", "MEMORY", "SESSIONS"],
    servers.map((server) => [
      server.id,
      server.user ?? "(shared)",
      server.url,
      server.pid,
      renderState(server.state),
      renderAge(server.uptimeMs),
      renderBytes(server.memoryBytes),
      server.activeSessions,
    ]),
  );
}
