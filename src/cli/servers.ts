import type { ServerView } from "../pool/server.js";
import { renderAge, renderBytes, renderState, renderTable } from "./table.js";

/** The table of servers that `ps`, `spawn` and `restart` print. */
export function renderServers(servers: readonly ServerView[]): string {
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
