import type { BusyServer, Overview } from "../../peers/overview.js";
import type { Listing } from "../list-command.js";
import { renderList } from "./lists/list.js";
import { HOSTS } from "./lists/overview.js";
import { describeClosedPool, describeFailures, withoutHost } from "./lists/servers.js";
import { renderBytes } from "./table.js";

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
