import { createHash } from "node:crypto";
import type { FleetEvent } from "../../base/event.js";
import { parseObject } from "../../base/values/text.js";
import type { Head } from "./log.js";

/** A line of the log: an event, its own hash (`hash`), and the hash of the line before it (`prev`). */
export interface Line extends FleetEvent {
  prev: string;
  hash: string;
}

/** Returns the pseudonym of a name. Returns a pseudonym unchanged. */
export type Conceal = (name: string) => string;

/**
 * The hash of a line covers all of its fields and the hash of the line before it. In place of names, it covers their
 * pseudonyms, so a purge can replace the names in the line without breaking the chain.
 */
function hashOf(event: FleetEvent, prev: string, conceal: Conceal): string {
  const { actor, id, seq, at, type, host, outcome, reason } = event;
  const hidden = (name: string | null) => (name === null ? null : conceal(name));
  const fields = [
    prev,
    id,
    seq,
    at,
    type,
    [hidden(actor.user), actor.tokenId, actor.via, hidden(actor.os)],
    hidden(event.user),
    hidden(event.sessionId),
    hidden(event.serverId),
    host,
    outcome,
    reason,
    hidden(event.detail),
  ];
  return createHash("sha256").update(JSON.stringify(fields)).digest("base64url");
}

/** Whether the hash of a line matches its fields, with the pseudonyms that `conceal` returns. */
export function hashHolds(line: Line, conceal: Conceal): boolean {
  return hashOf(line, line.prev, conceal) === line.hash;
}

/** Numbers events, and chains them to `head`, the newest line of the log. */
export function chain(events: readonly Omit<FleetEvent, "seq">[], head: Head, conceal: Conceal): Line[] {
  let { seq, hash: prev } = head;
  return events.map((event) => {
    seq += 1;
    const numbered = { ...event, seq };
    const line: Line = { ...numbered, prev, hash: hashOf(numbered, prev, conceal) };
    prev = line.hash;
    return line;
  });
}

/** Parses a line of the log; null if the text is not such a line. */
export function readLine(text: string): Line | null {
  const line = parseObject(text);
  if (line === undefined || typeof line.seq !== "number" || typeof line.hash !== "string") return null;
  return typeof line.actor === "object" && line.actor !== null && typeof line.prev === "string"
    ? (line as unknown as Line)
    : null;
}
