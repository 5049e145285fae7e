import { setTimeout as delay } from "node:timers/promises";
import { type EventPage, type EventQuery, newestEvent, readEvents } from "../../events/query.js";
import { type Verified, verifyLog } from "../../events/verify.js";
import type { EventLog } from "../../model/events/event.js";
import type { SessionsContext } from "../../sessions/context.js";

/** How often to look for new events, in milliseconds. */
const POLL_MS = 100;

interface OwnLog {
  events: Pick<EventLog, "flush">;
  stateRoot: string;
}

/**
 * Returns a page of this host's audit log.
 *
 * @param query.waitMs how long to wait for an event if there is none, in milliseconds
 */
export async function ownEvents(
  { events, stateRoot }: OwnLog,
  { waitMs = 0, ...query }: EventQuery & { waitMs?: number | undefined },
  signal?: AbortSignal,
): Promise<EventPage> {
  await events.flush();
  const until = performance.now() + waitMs;
  const from = query.after ?? 0;
  // If the log ends before the number `from`, it is a new log, so the caller has none of its events.
  for (let after = from > newestEvent(stateRoot) ? 0 : from; ; ) {
    const page = await readEvents(stateRoot, { ...query, after });
    if (page.events.length > 0 || page.hasMore) return page;
    after = page.next;
    do {
      if (performance.now() >= until || signal?.aborted === true) return page;
      await delay(POLL_MS, undefined, { signal }).catch(() => "aborted");
    } while (newestEvent(stateRoot) <= after);
  }
}

/** Verifies this host's audit log. */
export async function verifyOwnLog({ events, stateRoot }: OwnLog): Promise<Verified> {
  await events.flush();
  return await verifyLog(stateRoot);
}

/** Shortens this host's audit log. A failure only warns. */
export async function keepOwnLog(
  { config, events, warn }: Pick<SessionsContext, "config" | "events" | "warn">,
  stateRoot: string,
): Promise<void> {
  const { trimEvents } = await import("../../events/upkeep.js");
  try {
    await trimEvents({ config, events, stateRoot });
  } catch (error) {
    warn(`The audit log was not shortened: ${error instanceof Error ? error.message : String(error)}`);
  }
}
