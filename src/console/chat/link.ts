import { send, sessionPath } from "../api/client.js";
import { Problem, problemFrom } from "../api/problem.js";
import { eventsOf, type StreamEvent } from "../api/stream.js";

const FIRST_WAIT_MS = 1_000;
const LONGEST_WAIT_MS = 15_000;
/** Errors after which the same request fails again. */
const FINAL = new Set([401, 403, 404]);

export interface Listener {
  event(event: StreamEvent): void;
  /** The connection was lost, and is made again. Undefined: it is there. */
  trouble(problem: Problem | undefined): void;
  /** The stream does not come back. */
  failed(problem: Problem): void;
}

/**
 * Follows the recorded events of a session. After a lost connection, goes on after the last event, at whichever host answers.
 */
export async function followSession(id: string, listener: Listener, signal: AbortSignal): Promise<void> {
  let lastId: string | null = null;
  let waitMs = FIRST_WAIT_MS;
  while (!signal.aborted) {
    await visible(signal);
    const stop = hiddenOr(signal);
    try {
      const headers: Record<string, string> = { Accept: "text/event-stream" };
      if (lastId !== null) headers["Last-Event-ID"] = lastId;
      const response = await send("GET", sessionPath(id, "/events"), { headers, signal: stop.signal });
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

/** A prompt with its idempotency key, under which it runs only once, however often it is sent. */
export interface Keyed {
  prompt: string;
  key: string;
}

/**
 * The prompt with the key of the last one, if that was the same prompt and its connection was lost, because nobody knows whether
 * the fleet has it. Otherwise with a new key.
 */
export function keyFor(prompt: string, lost: Keyed | null): Keyed {
  return lost?.prompt === prompt ? lost : { prompt, key: crypto.getRandomValues(new BigUint64Array(2)).join("-") };
}

/** Runs a turn, and passes its events on. Resolves when it is over. @throws Problem */
export async function runTurn(
  id: string,
  { prompt, key }: Keyed,
  event: Listener["event"],
  signal: AbortSignal,
): Promise<void> {
  const response = await send("POST", sessionPath(id, "/turns"), {
    body: { prompt },
    headers: { Accept: "text/event-stream", "Idempotency-Key": key },
    signal,
  });
  for await (const each of eventsOf(response)) {
    if (each.event === "problem") throw new Problem(each.data);
    event(each);
    if (each.event === "turn.end") return;
  }
  throw connectionLost();
}

function connectionLost(): Problem {
  return new Problem({
    status: 0,
    detail: "The connection was lost during the turn.",
    suggestions: ["The turn goes on, and its reply appears here. You need not send the prompt again."],
  });
}

/** Resolves when the user sees the page. */
async function visible(signal: AbortSignal): Promise<void> {
  if (!document.hidden) return;
  await new Promise<void>((resolve) => {
    document.addEventListener("visibilitychange", () => resolve(), { once: true, signal });
    signal.addEventListener("abort", () => resolve(), { once: true });
  });
}

/**
 * Aborts when the signal does, or when the user no longer sees the page: a browser has only six connections to an address
 * for all of its tabs.
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
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}
