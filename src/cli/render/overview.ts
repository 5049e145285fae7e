import type { HostView, Overview } from "../../peers/overview.js";
import type { LiveView } from "../run/live.js";
import { describeClosedPool, renderServers } from "./lists/servers.js";
import { renderAge, renderBytes, renderState, renderTable } from "./table.js";

export function renderOverview(overview: Overview): string {
  return [...sectionsOf(overview).flatMap((lines) => [...lines, ""]), sumOf(overview)].join("\n");
}

export function viewOverview(overview: Overview, warnings: readonly string[]): LiveView {
  const closed = describeClosedPool(overview.pool);
  return {
    above: closed === null ? [] : [closed, ""],
    sections: sectionsOf(overview),
    below: ["", sumOf(overview), ...warnings.map((warning) => `Warning: ${warning}`)],
  };
}

function sectionsOf({ hosts, servers }: Overview): string[][] {
  const names = hosts.map(({ name }) => name);
  const table = servers.length === 0 ? "No servers." : renderServers(servers, names);
  return [renderHosts(hosts), table].map((text) => text.split("\n"));
}

function sumOf({ sessions }: Overview): string {
  return `Sessions: ${sessions.active} active, ${sessions.idle} idle`;
}

function renderHosts(hosts: readonly HostView[]): string {
  return renderTable(
    [
      { heading: "HOST", cut: "middle" },
      "STATE",
      { heading: "TERM", yields: 6 },
      { heading: "HEARTBEAT", yields: 4 },
      { heading: "FRONT DOOR", yields: 5 },
      "SERVERS",
      { heading: "LOADED", yields: 2 },
      { heading: "MEMORY", yields: 3 },
    ],
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
