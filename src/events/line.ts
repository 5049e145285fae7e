import { createHash } from "node:crypto";
import type { FleetEvent } from "../model/events/event.js";
import type { Head } from "../store/file/events/chain.js";

/** A line of the log: an event, with the hash of the line before it and its own. */
export interface Line extends FleetEvent {
  prev: string;
  hash: string;
}

/** Replaces a name by its pseudonym. A pseudonym stays as it is. */
export type Conceal = (name: string) => string;

/**
 * The hash of a line covers all of its fields and the hash of the line before it. It covers names only by their pseudonyms, so
 * that a purge can put the pseudonyms into the line, and the chain stays whole.
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

/** Whether a line has the hash that belongs to its fields, with this key of pseudonyms. */
export function hashHolds(line: Line, conceal: Conceal): boolean {
  return hashOf(line, line.prev, conceal) === line.hash;
}

/** Chains events to the head of the log. @returns the lines as text, and the new head */
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

export interface Chained {
  text: string;
  head: Head;
}
