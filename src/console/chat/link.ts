import { send, sessionPath } from "../api/client.js";
import type { Listener } from "../api/follow.js";
import { Problem } from "../api/problem.js";
import { eventsOf } from "../api/stream.js";

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
