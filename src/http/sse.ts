import { once } from "node:events";
import type { ServerResponse } from "node:http";
import type { Clock } from "../base/clock.js";
import { FleetError } from "../base/errors.js";
import type { StreamCounts } from "../serve/context.js";

/** A server-sent event. */
export interface StreamEvent {
  /**
   * The id with which a client resumes the stream after this event. Undefined if no stream can resume after this event.
   */
  id?: string | undefined;
  /** Null for an event that this client did not ask for. It gets only the id. */
  event: string | null;
  data: unknown;
  /** `data` as JSON, if it was already serialized. */
  json?: string;
}

/** The events of one stream. */
export interface EventStream {
  /** Batches of events. The next batch is requested only when the client has read most of the batches before it. */
  events: AsyncGenerator<readonly StreamEvent[], void, undefined>;
  /**
   * Starts a second source, whose events are sent at once, between those of `events`. The source calls `send` for each
   * event. Returns a function that stops the source.
   */
  between?: (send: (event: StreamEvent) => void) => () => void;
}

export const STREAM_TYPE = "text/event-stream";

/** If more bytes than this wait for the client to read them, no further batch is requested. */
const READY_BYTES = 64 * 1024;
/** How many bytes of events may wait for a client that reads slowly. A stream with more bytes is ended. */
export const MOST_WAITING_BYTES = 8 * 1024 * 1024;
/** How often to write a comment, in milliseconds. Proxies close connections that are silent for longer. */
const HEARTBEAT_MS = 15_000;
/** How long a client waits before it connects again, in milliseconds. */
const RETRY_MS = 1_000;

interface Surroundings {
  clock: Clock;
  counts: StreamCounts;
  /** Returns the last event of a stream that fails. */
  problem: (error: unknown) => StreamEvent;
}

/**
 * Writes events as a stream of server-sent events (WHATWG HTML, section 9.2), with a comment every 15 s. Requests
 * the next batch only when the client has read most of the batches before it. Ends the response. Never rejects.
 *
 * `between` is a callback, because a second generator would cost memory in each idle stream.
 *
 * Writes to the Node.js response directly, because a stream of the web platform costs about 10 kB of memory for each
 * client. Writes each batch with one call, because a call takes longer than making the text of a batch.
 */
export async function writeStream(
  response: ServerResponse,
  { events, between }: EventStream,
  { clock, counts, problem }: Surroundings,
): Promise<void> {
  response.write(`retry: ${RETRY_MS}\n\n`);
  counts.open++;
  const send = (batch: readonly StreamEvent[]) => {
    response.write(batch.map(written).join(""));
    counts.events += batch.length;
  };
  const beat = (): (() => void) =>
    clock.after(HEARTBEAT_MS, () => {
      // Skip a client that still has bytes to read: another comment would only add to them.
      if (response.writableLength === 0) response.write(":\n\n");
      stopBeat = beat();
    });
  let stopBeat = beat();
  const stop = between?.((event) => {
    if (response.destroyed) return;
    send([event]);
    if (response.writableLength <= MOST_WAITING_BYTES) return;
    problem(tooSlow("The client reads the events of the session too slowly."));
    response.destroy();
  });
  try {
    for await (const batch of events) {
      if (response.destroyed) return;
      send(batch);
      if (response.writableLength > READY_BYTES) await drained(response);
    }
  } catch (error) {
    if (response.destroyed) return;
    response.write(written(problem(error)));
  } finally {
    stop?.();
    stopBeat();
    counts.open--;
  }
  response.end();
}

/** Resolves when the client has read everything, or has gone. */
async function drained(response: ServerResponse): Promise<void> {
  const gone = new AbortController();
  const onClose = () => gone.abort();
  response.once("close", onClose);
  await once(response, "drain", { signal: gone.signal }).catch(() => "the client has gone");
  response.off("close", onClose);
}

function written({ id, event, data, json = JSON.stringify(data) }: StreamEvent): string {
  const place = id === undefined ? "" : `id: ${inOneLine(id)}\n`;
  return event === null ? `${place}\n` : `${place}event: ${inOneLine(event)}\ndata: ${json}\n\n`;
}

/** Replaces each line break with a space, because a line break would let the text add fields and events. */
function inOneLine(text: string): string {
  return /[\r\n\0]/.test(text) ? text.replace(/[\r\n\0]/g, " ") : text;
}

class TooSlow extends FleetError {}

/** Whether a stream was ended because its client reads too slowly. */
export function isTooSlow(error: unknown): boolean {
  return error instanceof TooSlow;
}

export function tooSlow(message: string): FleetError {
  return new TooSlow("FLEET_LIMIT_REACHED", message, {
    suggestions: ["GET /v1/sessions/{id}/events has the events after the last one that you have read."],
    retryable: false,
  });
}
