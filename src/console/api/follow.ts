import { send } from "./client.js";
import { Problem, problemFrom } from "./problem.js";
import { eventsOf, type StreamEvent } from "./stream.js";

const FIRST_WAIT_MS = 1_000;
const LONGEST_WAIT_MS = 15_000;
/** The statuses of errors after which the same request would fail again. */
const FINAL = new Set([401, 403, 404]);

export interface Source {
  path: string;
  /**
   * Called before the first request, and again until it succeeds. Resolves with the id of the event after which to
   * start the stream; with null if the route decides where to start.
   */
  begin?(signal: AbortSignal): Promise<string | null>;
}

export interface Listener {
  event(event: StreamEvent): void;
  /** Reports why the connection was lost, before it is made again; undefined once the connection works. */
  trouble(problem: Problem | undefined): void;
  /** Reports an error after which {@link follow} does not try again. */
  failed(problem: Problem): void;
}

/** Follows a stream of events. If the connection is lost, resumes after the last event, at whichever host answers. */
export async function follow({ path, begin }: Source, listener: Listener, signal: AbortSignal): Promise<void> {
  let lastId: string | null | undefined;
  let waitMs = FIRST_WAIT_MS;
  while (!signal.aborted) {
    await visible(signal);
    const stop = hiddenOr(signal);
    try {
      if (lastId === undefined) lastId = (await begin?.(stop.signal)) ?? null;
      const headers: Record<string, string> = { Accept: "text/event-stream" };
      if (lastId !== null) headers["Last-Event-ID"] = lastId;
      const response = await send("GET", path, { headers, signal: stop.signal });
      listener.trouble(undefined);
      for await (const event of eventsOf(response)) {
        if (event.event === "problem") throw new Problem(event.data);
        lastId = event.id ?? lastId;
        waitMs = FIRST_WAIT_MS;
        listener.event(event);
      }
    } catch (error) {
      if (stop.signal.aborted) continue;
      const problem = problemFrom(error);
      if (FINAL.has(problem.status)) return listener.failed(problem);
      listener.trouble(problem);
    } finally {
      stop.end();
    }
    await pause(waitMs, signal);
    waitMs = Math.min(waitMs * 2, LONGEST_WAIT_MS);
  }
}

/** Resolves when the user sees the page, or when the signal aborts. */
async function visible(signal: AbortSignal): Promise<void> {
  if (!document.hidden) return;
  await new Promise<void>((resolve) => {
    document.addEventListener("visibilitychange", seen);
    signal.addEventListener("abort", seen);
    function seen() {
      document.removeEventListener("visibilitychange", seen);
      signal.removeEventListener("abort", seen);
      resolve();
    }
  });
}

/**
 * A signal that aborts when `signal` does, or when the user no longer sees the page. A hidden page must not occupy a
 * connection, because a browser has only six connections to an address for all of its tabs.
 */
function hiddenOr(signal: AbortSignal): { signal: AbortSignal; end(): void } {
  const controller = new AbortController();
  const abort = () => {
    if (document.hidden || signal.aborted) controller.abort();
  };
  document.addEventListener("visibilitychange", abort);
  signal.addEventListener("abort", abort);
  const end = () => {
    document.removeEventListener("visibilitychange", abort);
    signal.removeEventListener("abort", abort);
  };
  return { signal: controller.signal, end };
}

async function pause(ms: number, signal: AbortSignal): Promise<void> {
  await new Promise<void>((resolve) => {
    const timer = setTimeout(end, ms);
    signal.addEventListener("abort", end);
    function end() {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      resolve();
    }
  });
}
