import { printable } from "../../config/values/text.js";
import type { PoolState } from "../../pool/admission.js";
import type { ServerView } from "../../pool/server.js";
import { renderList } from "./lists/list.js";
import { SERVERS } from "./lists/servers.js";

/** Renders a table of servers, with failures below it. */
export function renderServers(servers: readonly ServerView[], hosts: readonly string[] = []): string {
  const without = [...withoutHost(hosts), ...(servers.every(({ sessions }) => sessions === null) ? ["sessions"] : [])];
  return [renderList(SERVERS, servers, { format: "table", without }), ...describeFailures(servers)].join("\n");
}

/** Returns the column that a table does not need if the fleet is on one host. */
export function withoutHost(hosts: readonly unknown[]): string[] {
  return hosts.length > 1 ? [] : ["host"];
}

export function describeFailures(servers: readonly ServerView[]): string[] {
  return servers.flatMap(({ id, failure }) => (failure === null ? [] : [`${id}: ${printable(failure)}`]));
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
