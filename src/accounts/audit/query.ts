import { setImmediate } from "node:timers/promises";
import type { EventType, FleetEvent } from "../../base/event.js";
import { readLine } from "./line.js";
import { AuditLog } from "./log.js";

/** Selects events. An event must match every field that is given. */
export interface EventFilter {
  /** Only events that this user caused, or that concern this user. */
  user?: string | undefined;
  types?: EventType[] | undefined;
  /** Only events from this time on, in milliseconds since the epoch. */
  sinceMs?: number | undefined;
}

export interface EventQuery extends EventFilter {
  /** Only events after this number in the host's log. */
  after?: number | undefined;
  /** The most events to return. */
  limit: number;
}

export interface EventPage {
  events: FleetEvent[];
  /** The `after` of the next page. */
  next: number;
  /** Whether the log has, or may have, more events after this page. */
  hasMore: boolean;
}

/** How many lines to read at once. */
const AT_ONCE = 500;

/** Reads one page of this host's log. Leaves out damaged lines. */
export async function readEvents(stateRoot: string, query: EventQuery): Promise<EventPage> {
  const log = AuditLog.of(stateRoot);
  const events: FleetEvent[] = [];
  const { after = 0, sinceMs } = query;
  const first = sinceMs === undefined ? 0 : ((await log.firstSince(sinceMs)) ?? log.head().seq + 1);
  for (let next = Math.max(after, first - 1); ; ) {
    const lines = await log.linesAfter(next, AT_ONCE);
    for (const { seq, text } of lines) {
      if (events.length >= query.limit) return { events, next, hasMore: true };
      next = seq;
      const line = readLine(text);
      if (line !== null && matches(line, query)) events.push(withoutHashes(line));
    }
    if (lines.length < AT_ONCE) return { events, next, hasMore: false };
    await setImmediate(); // Let a supervisor do other work in between.
  }
}

/** The number of the newest event of this host's log; 0 if there is none. */
export function newestEvent(stateRoot: string): number {
  return AuditLog.of(stateRoot).head().seq;
}

function matches(event: FleetEvent, { user, types, sinceMs }: EventFilter): boolean {
  if (types !== undefined && !types.includes(event.type)) return false;
  if (user !== undefined && event.user !== user && event.actor.user !== user) return false;
  return sinceMs === undefined || Date.parse(event.at) >= sinceMs;
}

function withoutHashes({ prev: _, hash: __, ...event }: FleetEvent & { prev: string; hash: string }): FleetEvent {
  return event;
}
