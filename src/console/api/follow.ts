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

/** A server-sent event. */
export interface StreamEvent {
  id: string | null;
  event: string;
  // biome-ignore lint/suspicious/noExplicitAny: each kind of event has its own fields
  data: any;
}

/**
 * Reads the server-sent events of an answer (WHATWG HTML, section 9.2). The browser's `EventSource` does not work
 * here, because it cannot send our headers.
 */
export async function* eventsOf(response: Response): AsyncGenerator<StreamEvent, void, undefined> {
  if (response.body === null) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop() ?? "";
      for (const block of blocks) {
        const event = parse(block);
        if (event !== null) yield event;
      }
    }
  } finally {
    await reader.cancel().catch(() => "it has failed");
  }
}

function parse(block: string): StreamEvent | null {
  const fields = new Map(block.split("\n").map((line) => split(line)));
  const data = fields.get("data");
  if (data === undefined) return null;
  return { id: fields.get("id") ?? null, event: fields.get("event") ?? "message", data: JSON.parse(data) };
}

function split(line: string): [string, string] {
  const colon = line.indexOf(": ");
  return colon === -1 ? [line, ""] : [line.slice(0, colon), line.slice(colon + 2)];
}
