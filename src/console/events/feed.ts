import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { ask, type Problem, problemFrom } from "../api/client.js";
import { follow, type StreamEvent } from "../api/follow.js";
import type { Answer, FleetEvent } from "../api/types.js";

/** The most events that the page keeps. */
export const MOST = 500;

/** The events that the page has, the newest first. */
interface Feed {
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

const PAGE = 100;
/** How long to collect events, so that the page shows many at once, in milliseconds. */
const GATHER_MS = 150;

/** The events of the last day, and new ones as they come. `filter` is added to the query of the API. */
export function useFeed(filter: string) {
  const [feed, setFeed] = useState<Feed>(NO_FEED);
  const [problem, setProblem] = useState<Problem>();
  const [isPaused, setPaused] = useState(false);
  const paused = useRef(false);
  const path = `/v1/events?since=24h&limit=${PAGE}${filter}`;

  useEffect(() => {
    const end = new AbortController();
    const gathered: FleetEvent[] = [];
    let timer: ReturnType<typeof setTimeout> | undefined;
    const flush = () => {
      timer = undefined;
      const events = gathered.splice(0);
      setFeed((before) => withNew(before, events, paused.current));
    };
    const begin = async (signal: AbortSignal) => {
      const { events, next } = await ask<Answer<"listEvents">>("GET", path, { signal });
      setFeed((before) => withOlder(before, events, next));
      return events[0]?.id ?? null;
    };
    const listener = {
      event: ({ data }: StreamEvent) => {
        gathered.push(data);
        timer ??= setTimeout(flush, GATHER_MS);
      },
      trouble: setProblem,
      failed: setProblem,
    };
    setFeed(NO_FEED);
    setProblem(undefined);
    void follow({ path, begin }, listener, end.signal);
    return () => {
      end.abort();
      clearTimeout(timer);
    };
  }, [path]);

  const pause = useCallback(() => {
    paused.current = true;
    setPaused(true);
  }, []);
  const resume = useCallback(() => {
    paused.current = false;
    setPaused(false);
    setFeed(resumed);
  }, []);
  /** Loads a page of older events. Never rejects. */
  const loadOlder = async () => {
    if (feed.older === null) return;
    try {
      const { events, next } = await ask<Answer<"listEvents">>(
        "GET",
        `${path}&cursor=${encodeURIComponent(feed.older)}`,
      );
      setFeed((before) => withOlder(before, events, next));
    } catch (error) {
      setProblem(problemFrom(error));
    }
  };
  return { ...feed, problem, isPaused, pause, resume, loadOlder };
}
