import { createHash } from "node:crypto";
import type { FleetEvent } from "../../base/event.js";
import type { Head } from "../../store/file/events.js";

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

/**
 * Numbers events, and chains them to `head`, the newest line of the log. @returns the lines as text, and the new head
 */
export function chain(events: readonly Omit<FleetEvent, "seq">[], head: Head, conceal: Conceal): Chained {
  let { seq, hash } = head;
  let text = "";
  for (const event of events) {
    seq += 1;
    const numbered = { ...event, seq };
    const line: Line = { ...numbered, prev: hash, hash: hashOf(numbered, hash, conceal) };
    hash = line.hash;
    text += `${JSON.stringify(line)}\n`;
  }
  return { text, head: { seq, hash } };
}

interface Chained {
  text: string;
  head: Head;
}
