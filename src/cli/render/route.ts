import { countOf } from "../../config/values/text.js";
import type { Rebalanced, RouteView } from "../../fleet/options.js";
import type { RebalancePlan } from "../../hosts/rebalance.js";
import { type Column, renderState, renderTable, SERVER, SESSION, USER } from "./table.js";

const HOST: Column = { heading: "HOST", cut: "middle" };
const NOTHING = "Nothing to move.";
const KEPT: Column[] = [SESSION, USER, { heading: "STAYS ON", cut: "middle" }, { heading: "REASON", cut: "end" }];

export function renderRoute({ user, host, serverId, server, reason }: RouteView): string {
  const hostColumn = host === null ? null : HOST;
  return renderTable(
    [USER, hostColumn, SERVER, { heading: "URL", yields: 1 }, "STATE", { heading: "REASON", cut: "end" }],
    [[user, host, serverId, server?.url ?? null, renderState(server?.state ?? "stopped"), reason]],
  );
}

export function renderPlan({ hosts, moves, stays }: RebalancePlan): string {
  if (hosts.length === 0) return "The fleet is on one host, so no user can move.";
  const loads = renderTable(
    [HOST, "USERS", "AFTERWARDS", "TAKES USERS"],
    hosts.map(({ name, users, planned, takesUsers }) => [name, users, planned, takesUsers ? "yes" : "no"]),
  );
  const moving = renderTable(
    [USER, { heading: "FROM", cut: "middle" }, { heading: "TO", cut: "middle" }, "SESSIONS"],
    moves.map(({ user, from, to, sessions }) => [user, from, to, sessions]),
  );
  const staying = stays.length === 0 ? "" : `, and ${stays.length} would stay where their sessions are`;
  const isNothing = moves.length + stays.length === 0;
  const summary = isNothing ? NOTHING : `${countOf(moves.length, "user")} would move${staying}.`;
  return [loads, ...(moves.length === 0 ? [] : ["", moving]), "", summary].join("\n");
}

export function renderRebalanced({ moved, stays }: Rebalanced): string {
  const kept = moved.flatMap((each) => each.kept.map(({ id, reason }) => [id, each.user, each.from, reason]));
  const table = kept.length === 0 ? [] : ["", renderTable(KEPT, kept)];
  const released = moved.reduce((sum, each) => sum + each.released.length, 0);
  const moving = `${countOf(moved.length, "user")} moved with ${countOf(released, "session")}`;
  const staying = [
    ...(kept.length === 0 ? [] : [countOf(kept.length, "session")]),
    ...(stays.length === 0 ? [] : [countOf(stays.length, "user")]),
  ];
  const summary =
    moved.length + staying.length === 0
      ? NOTHING
      : `${moving}.${staying.length === 0 ? "" : ` Not moved: ${staying.join(" and ")}.`}`;
  const failed = moved.flatMap(({ user, from, failure }) =>
    failure === null ? [] : [`${user} (from ${from}): ${failure}`],
  );
  return [summary, ...table, ...failed].join("\n");
}
