import type { TurnResult } from "../../fleet/options.js";
import type { RequestChange } from "../../sessions/requests/request.js";
import type { SessionEvent } from "../fleet.js";
import { type EventStream, MOST_WAITING_BYTES, type StreamEvent, tooSlow } from "../streams/sse.js";

/** The stream of a turn. `done` settles when the turn is over. The turn continues if the client leaves. */
export interface TurnStream {
  stream: EventStream;
  done: Promise<void>;
}

export interface TurnListeners {
  onEvent: (event: SessionEvent) => void;
  onRequest?: (change: RequestChange) => void;
}

/**
 * Begins a turn, and resolves with the stream of its events once the first event is there. If the turn succeeds, the
 * last event is `turn.end`.
 *
 * @param isWanted whether the client gets an event of this type
 * @throws the error of a turn that fails before its first event
 */
export async function streamTurn(
  begin: (listeners: TurnListeners) => PromiseLike<TurnResult>,
  isWanted: (type: string) => boolean,
): Promise<TurnStream> {
  const waiting = new WaitingEvents();
  const done = (async () => {
    try {
      const reply = await begin({
        onEvent: (event) => waiting.push(eventOf(event, isWanted)),
        onRequest: ({ type, request }) => {
          if (isWanted(type)) waiting.push({ event: type, data: request });
        },
      });
      waiting.push({ event: "turn.end", data: turnOf(reply) });
      waiting.end();
    } catch (error) {
      waiting.end(error);
    }
  })();
  await waiting.ready();
  return { stream: { events: waiting.read() }, done };
}

/** The answer for a turn. */
export function turnOf({ turn, outcome, text, usage }: TurnResult) {
  return { turn, outcome, reply: text, usage };
}

/**
 * Converts an event of a turn into an event of the stream. Only recorded events have an id. `system.message` has none:
 * the runtime (1.0.85) sends it with each turn without marking it as ephemeral, but records it only once.
 */
function eventOf(event: SessionEvent, isWanted: (type: string) => boolean): StreamEvent {
  const isRecorded = event.ephemeral !== true && event.type !== "system.message";
  const id = isRecorded ? event.id : undefined;
  return isWanted(event.type) ? { id, event: event.type, data: event } : { id, event: null, data: null };
}

/**
 * After a batch with a delta (a piece of the reply), how long to collect events for the next batch, in milliseconds. A
 * text that grows twenty times a second still looks fluent. Neither the first delta nor the end of the turn waits.
 */
const GATHER_MS = 50;
const DELTA = "assistant.message_delta";

/** Buffers the events that the client has not read. Fails above {@link MOST_WAITING_BYTES}. */
class WaitingEvents {
  #events: StreamEvent[] = [];
  #bytes = 0;
  #isOver = false;
  #failure: unknown;
  #wake = (): void => undefined;
  #stopGathering = (): void => undefined;

  push(event: StreamEvent): void {
    if (this.#isOver || (event.event === null && event.id === undefined)) return;
    const json = JSON.stringify(event.data);
    this.#bytes += json.length;
    this.#events.push({ ...event, json });
    if (this.#bytes > MOST_WAITING_BYTES) {
      this.#events = [];
      this.end(tooSlow("The client reads the events of the turn too slowly. The turn goes on."));
    }
    this.#wake();
  }

  end(failure?: unknown): void {
    if (!this.#isOver) this.#failure = failure;
    this.#isOver = true;
    this.#stopGathering();
    this.#wake();
  }

  /** Waits for {@link GATHER_MS}, so that more events can be added, or until the turn ends. */
  async #gathered(): Promise<void> {
    if (this.#isOver) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, GATHER_MS);
      this.#stopGathering = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  /** Resolves when there is an event, or when the turn is over. @throws the turn's error if there is no event */
  async ready(): Promise<void> {
    while (this.#events.length === 0 && !this.#isOver) await new Promise<void>((resolve) => (this.#wake = resolve));
    if (this.#events.length === 0 && this.#failure !== undefined) throw this.#failure;
  }

  async *read(): AsyncGenerator<readonly StreamEvent[], void, undefined> {
    try {
      for (;;) {
        await this.ready();
        const events = this.#events;
        if (events.length === 0) return;
        this.#events = [];
        this.#bytes = 0;
        yield events;
        if (events.some(({ event }) => event === DELTA)) await this.#gathered();
      }
    } finally {
      this.end();
      this.#events = [];
    }
  }
}
