import type { Overview } from "../../peers/overview.js";
import { renderList } from "./lists/list.js";
import { BUSY_SERVERS, HOSTS } from "./lists/overview.js";
import { describeFailures, withoutHost } from "./lists/servers.js";
import { renderBytes } from "./table.js";

/** Renders the fleet once: hosts, servers and sums. */
export function renderOverview(overview: Overview): string {
  const { hosts, servers } = overview;
  const without = withoutHost(hosts.map(({ name }) => name));
  const table =
    servers.length === 0 ? ["No servers."] : [renderList(BUSY_SERVERS, servers, { format: "table", without })];
  return [
    renderList(HOSTS, hosts, { format: "table" }),
    "",
    ...table,
    ...describeFailures(servers),
    "",
    ...sumsOf(overview),
  ].join("\n");
}

/** Two lines about the whole fleet. */
export function sumsOf({ hosts, servers, sessions, users, turns }: Overview): [string, string] {
  const running = servers.filter(({ pid }) => pid !== null).length;
  const memory = hosts.reduce((sum, { memoryBytes }) => sum + memoryBytes, 0);
  return [
    `Sessions: ${sessions.active} active, ${sessions.idle} idle   Turns: ${turns.length}`,
    `Users: ${users.length}   Servers: ${running} of ${servers.length} running   Memory: ${renderBytes(memory)}`,
  ];
}
