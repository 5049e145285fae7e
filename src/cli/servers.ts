import { printable } from "../config/text.js";
import type { ServerView } from "../pool/server.js";
import { renderAge, renderBytes, renderState, renderTable } from "./table.js";

/**
 * The table of servers that `ps`, `spawn` and `restart` print, and below it why servers are not well.
 *
 * @param hosts the hosts of the fleet: where there are several, the table says which one each is on
 */
export function renderServers(servers: readonly ServerView[], hosts: readonly string[] = []): string {
  const ill = servers.flatMap(({ id, failure }) => (failure === null ? [] : [`${id}: ${printable(failure)}`]));
  return [table(servers, hosts.length > 1), ...ill].join("\n");
}

function table(servers: readonly ServerView[], withHost: boolean): string {
  return renderTable(
    ["SERVER", ...(withHost ? ["HOST"] : []), "USER", "URL", "PID", "STATE", "UPTIME", "MEMORY", "SESSIONS"],
    servers.map((server) => [
      server.id,
      ...(withHost ? [server.hostName] : []),
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
