import { printable } from "../../../config/values/text.js";
import { EVENT_TYPES, type FleetEvent } from "../../../model/events/event.js";
import { colour } from "../colour.js";

const TYPE_WIDTH = Math.max(...EVENT_TYPES.map((type) => type.length));

/** One line for an event: when, what, about what, by whom, and why. */
export function renderEvent({
  at,
  type,
  actor,
  user,
  sessionId,
  serverId,
  host,
  outcome,
  reason,
  detail,
}: FleetEvent): string {
  const about = [user, sessionId && `session ${sessionId}`, serverId && `server ${serverId}`];
  const by = [
    actor.user !== null && actor.user !== user ? actor.user : null,
    actor.tokenId && `token ${actor.tokenId}`,
    `${actor.via}${actor.os === null ? "" : ` as ${actor.os}`}`,
    host && `on ${host}`,
  ];
  const isUsual = outcome === "ok" || outcome === "completed";
  const how = isUsual ? reason : [outcome, reason].filter(Boolean).join(" ");
  const parts = [listed(about), `by ${listed(by)}`, how && `(${how})`, detail];
  const text = printable(parts.filter((part) => part !== null && part !== "").join("  "));
  const kind = type.padEnd(TYPE_WIDTH);
  return `${at}  ${isUsual || outcome === "aborted" ? kind : colour.red(kind)}  ${text}`;
}

function listed(parts: readonly (string | null)[]): string {
  return parts.filter((part) => part !== null && part !== "").join(", ");
}
