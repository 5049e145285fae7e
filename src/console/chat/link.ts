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
    try {
      const headers: Record<string, string> = { Accept: "text/event-stream" };
      if (lastId !== null) headers["Last-Event-ID"] = lastId;
      const response = await send("GET", sessionPath(id, "/events"), { headers, signal });
      listener.trouble(undefined);
      for await (const event of eventsOf(response)) {
        if (event.event === "problem") throw new Problem(event.data);
        lastId = event.id ?? lastId;
        waitMs = FIRST_WAIT_MS;
        listener.event(event);
      }
    } catch (error) {
      if (signal.aborted) return;
      const problem = problemFrom(error);
      if (FINAL.has(problem.status)) return listener.failed(problem);
      listener.trouble(problem);
    }
    await pause(waitMs, signal);
    waitMs = Math.min(waitMs * 2, LONGEST_WAIT_MS);
  }
}

/** Runs a turn, and passes its events on. Resolves when it is over. @throws Problem */
export async function runTurn(
  id: string,
  prompt: string,
  event: Listener["event"],
  signal: AbortSignal,
): Promise<void> {
  const response = await send("POST", sessionPath(id, "/turns"), {
    body: { prompt },
    headers: {
      Accept: "text/event-stream",
      "Idempotency-Key": crypto.getRandomValues(new BigUint64Array(2)).join("-"),
    },
    signal,
  });
  for await (const each of eventsOf(response)) {
    if (each.event === "problem") throw new Problem(each.data);
    event(each);
  }
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
