import type { HostView, Overview } from "../remote/overview.js";
import { renderServers } from "./servers.js";
import { renderAge, renderBytes, renderState, renderTable } from "./table.js";

/** One look at the fleet, as `top` shows it. */
export function renderOverview({ hosts, servers, sessions }: Overview): string {
  const names = hosts.map(({ name }) => name);
  return [
    renderHosts(hosts),
    "",
    servers.length === 0 ? "No servers." : renderServers(servers, names),
    "",
    `Sessions: ${sessions.active} active, ${sessions.idle} idle`,
  ].join("\n");
}

function renderHosts(hosts: readonly HostView[]): string {
  return renderTable(
    ["HOST", "STATE", "TERM", "HEARTBEAT", "FRONT DOOR", "SERVERS", "SESSIONS", "MEMORY"],
    hosts.map((host) => [
      host.name,
      renderState(host.state),
      host.term,
      renderAge(host.heartbeatAgeMs),
      host.door,
      host.servers,
      host.sessions,
      renderBytes(host.memoryBytes),
    ]),
  );
}
