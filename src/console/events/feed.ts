import type { FleetEvent } from "./types.js";

/** At most this many events are kept. */
export const MOST = 500;

/** The events that the page has, the newest first. */
export interface Feed {
  /** Undefined until they are loaded. */
  shown: readonly FleetEvent[] | undefined;
  /** Those that have come since the user paused. */
  waiting: readonly FleetEvent[];
  /** Where the events before the oldest one begin. Null if there are none, or if the page can hold no more. */
  older: string | null;
}

export const NO_FEED: Feed = { shown: undefined, waiting: [], older: null };

/** Adds events that have just come. */
export function withNew(feed: Feed, events: readonly FleetEvent[], isPaused: boolean): Feed {
  if (isPaused) {
    const known = new Set(feed.shown?.map(({ id }) => id));
    const unknown = events.filter(({ id }) => !known.has(id));
    return { ...feed, waiting: merged(unknown, feed.waiting).slice(0, MOST) };
  }
  return bounded({ ...feed, shown: merged(events, feed.shown ?? []) });
}

/** Shows the events that have come during a pause. */
export function resumed(feed: Feed): Feed {
  return bounded({ ...feed, shown: merged(feed.waiting, feed.shown ?? []), waiting: [] });
}

/** Adds a page of older events. */
export function withOlder(feed: Feed, events: readonly FleetEvent[], older: string | null): Feed {
  return bounded({ ...feed, shown: merged(feed.shown ?? [], events), older });
}

/** A page that dropped its oldest events cannot go on from its last page without a gap. */
function bounded(feed: Feed): Feed {
  const { shown = [] } = feed;
  if (shown.length < MOST) return feed;
  return { ...feed, shown: shown.slice(0, MOST), older: null };
}

/** Both without repetitions. The events of one host keep the order of its log, also if its clock jumped. */
function merged(newer: readonly FleetEvent[], before: readonly FleetEvent[]): readonly FleetEvent[] {
  const all = new Map([...newer, ...before].map((event) => [event.id, event]));
  return [...all.values()].sort((a, b) => (a.host === b.host ? b.seq - a.seq : b.at.localeCompare(a.at)));
}
