import { send, sessionPath } from "../api/client.js";
import type { Listener } from "../api/follow.js";
import { Problem, problemFrom } from "../api/problem.js";
import { eventsOf } from "../api/stream.js";

/** A prompt with its idempotency key. With this key, the prompt runs only once, however often it is sent. */
export interface Keyed {
  prompt: string;
  key: string;
}

/**
 * Returns the prompt with a key. If the connection was lost when the same prompt was sent before (`lost`), reuses the
 * key of that attempt, because the fleet may have received the prompt. Otherwise, makes a new key.
 */
export function keyFor(prompt: string, lost: Keyed | null): Keyed {
  return lost?.prompt === prompt ? lost : { prompt, key: crypto.getRandomValues(new BigUint64Array(2)).join("-") };
}

/** Runs a turn, and passes its events to `event`. Resolves when it is over. @throws Problem */
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
  throw problemFrom("The connection was lost.");
}
