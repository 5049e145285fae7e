import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { ask } from "../api/client.js";
import { follow } from "../api/follow.js";
import { type Problem, problemFrom } from "../api/problem.js";
import type { StreamEvent } from "../api/stream.js";
import { type Feed, NO_FEED, resumed, withNew, withOlder } from "./feed.js";
import type { EventPage, FleetEvent } from "./types.js";

const PAGE = 100;
/** How long to collect events, so that the page shows many at once, in milliseconds. */
const GATHER_MS = 150;

export interface Followed extends Feed {
  problem: Problem | undefined;
  isPaused: boolean;
  pause(): void;
  resume(): void;
  /** Loads a page of older events. Never rejects. */
  loadOlder(): Promise<void>;
}

/** The events of the last day, and new ones as they come. `filter` is added to the query of the API. */
export function useFeed(filter: string): Followed {
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
      const { events, next } = await ask<EventPage>("GET", path, { signal });
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
  const loadOlder = async () => {
    if (feed.older === null) return;
    try {
      const { events, next } = await ask<EventPage>("GET", `${path}&cursor=${encodeURIComponent(feed.older)}`);
      setFeed((before) => withOlder(before, events, next));
    } catch (error) {
      setProblem(problemFrom(error));
    }
  };
  return { ...feed, problem, isPaused, pause, resume, loadOlder };
}
