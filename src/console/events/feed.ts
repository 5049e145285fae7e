import type { FleetEvent } from "./types.js";

/** The most events that the page keeps. */
export const MOST = 500;

/** The events that the page has, the newest first. */
export interface Feed {
  /** Undefined until they are loaded. */
  shown: readonly FleetEvent[] | undefined;
  /** The events that have come since the user paused. */
  waiting: readonly FleetEvent[];
  /** The cursor for events older than these. Null if there are no such events, or if the page has no room for more. */
  older: string | null;
}

export const NO_FEED: Feed = { shown: undefined, waiting: [], older: null };

/** Adds new events, which are sorted from the oldest to the newest. */
export function withNew(feed: Feed, events: readonly FleetEvent[], isPaused: boolean): Feed {
  const { shown = [], waiting } = feed;
  const unknown = unknownTo([...shown, ...waiting], events).reverse();
  if (isPaused) return { ...feed, waiting: [...unknown, ...waiting].slice(0, MOST) };
  return bounded({ ...feed, shown: [...unknown, ...shown] });
}

/** Shows the events that have come during a pause. */
export function resumed(feed: Feed): Feed {
  return bounded({ ...feed, shown: [...feed.waiting, ...(feed.shown ?? [])], waiting: [] });
}

/** Adds a page of older events. */
export function withOlder(feed: Feed, events: readonly FleetEvent[], older: string | null): Feed {
  const { shown = [] } = feed;
  return bounded({ ...feed, shown: [...shown, ...unknownTo(shown, events)], older });
}

/**
 * Drops the oldest events if there are too many. Older events can then no longer be loaded, because the cursor would
 * leave a gap.
 */
function bounded(feed: Feed): Feed {
  const { shown = [] } = feed;
  if (shown.length < MOST) return feed;
  return { ...feed, shown: shown.slice(0, MOST), older: null };
}

/**
 * Returns the events that are not in `known`, in the order in which they come. They are not sorted by time, because the
 * clock of a host may be set back.
 */
function unknownTo(known: readonly FleetEvent[], events: readonly FleetEvent[]): FleetEvent[] {
  const ids = new Set(known.map(({ id }) => id));
  return [...new Map(events.map((event) => [event.id, event])).values()].filter(({ id }) => !ids.has(id));
}
