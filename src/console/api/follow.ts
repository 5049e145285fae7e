import { EventSourceParserStream } from "eventsource-parser/stream";
import { Problem, problemFrom, send } from "./client.js";

const FIRST_WAIT_MS = 1_000;
const LONGEST_WAIT_MS = 15_000;
/** The statuses of errors after which the same request would fail again. */
const FINAL = new Set([401, 403, 404]);

interface Source {
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
    if (document.hidden)
      await until(signal, (seen) => document.addEventListener("visibilitychange", seen, { once: true }));
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
      stop.abort();
    }
    await until(signal, (over) => setTimeout(over, waitMs));
    waitMs = Math.min(waitMs * 2, LONGEST_WAIT_MS);
  }
}

/** Resolves when `start` calls its argument, or when the signal aborts. */
async function until(signal: AbortSignal, start: (done: () => void) => void): Promise<void> {
  if (signal.aborted) return;
  const over = new AbortController();
  await new Promise<void>((resolve) => {
    signal.addEventListener("abort", () => resolve(), { signal: over.signal });
    start(resolve);
  });
  over.abort();
}

/**
 * Aborts when `signal` does, or when the user no longer sees the page. A hidden page must not occupy a connection,
 * because a browser has only six connections to an address for all of its tabs.
 */
function hiddenOr(signal: AbortSignal): AbortController {
  const stop = new AbortController();
  const look = () => {
    if (document.hidden || signal.aborted) stop.abort();
  };
  document.addEventListener("visibilitychange", look, { signal: stop.signal });
  signal.addEventListener("abort", look, { signal: stop.signal });
  return stop;
}

/** A server-sent event. */
export interface StreamEvent {
  id: string | null;
  event: string;
  // biome-ignore lint/suspicious/noExplicitAny: each kind of event has its own fields
  data: any;
}

/** Reads the server-sent events of an answer. The browser's `EventSource` cannot send our headers. */
export async function* eventsOf({ body }: Response): AsyncGenerator<StreamEvent, void, undefined> {
  if (body === null) return;
  const events = body.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream());
  const reader = events.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const { id = null, event = "message", data } = value;
      yield { id, event, data: JSON.parse(data) };
    }
  } finally {
    await reader.cancel().catch(() => "it has failed");
  }
}
