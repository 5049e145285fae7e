import { once } from "node:events";
import type { ServerResponse } from "node:http";
import { FleetError } from "../../errors.js";
import type { Heartbeats } from "./heartbeats.js";

/** A server-sent event. */
export interface StreamEvent {
  /** With this id, a client goes on after the event. Undefined for an event that nobody can ask for again. */
  id?: string | undefined;
  event: string;
  data: unknown;
  /** The data as JSON, if it was written before. */
  json?: string;
}

/** The events of one stream. */
export interface EventStream {
  /** Taken batch by batch, when the client has read most of those before. */
  events: AsyncGenerator<readonly StreamEvent[], void, undefined>;
  /** Events that are sent as they come, between the others. Calls `send` for each. Returns a function that ends the calls. */
  between?: (send: (event: StreamEvent) => void) => () => void;
}

export const STREAM_TYPE = "text/event-stream";

/** How much is made ready for a client that does not read, in bytes. */
const READY_BYTES = 64 * 1024;
/** How many bytes of events wait for a client that reads slowly. */
export const MOST_WAITING_BYTES = 8 * 1024 * 1024;
/** How long a client waits before it connects again, in milliseconds. */
const RETRY_MS = 1_000;

interface Surroundings {
  heartbeats: Heartbeats;
  /** The last event of a stream that fails. */
  problem: (error: unknown) => StreamEvent;
}

/**
 * Writes events as a stream of server-sent events (WHATWG HTML, section 9.2), with comments in long silences. Takes the next
 * batch only when the client has read most of those before. Ends the response. Never rejects.
 *
 * The events between the others need no generator, which would cost memory in each idle stream.
 *
 * This writes to the response of Node.js directly, because a stream of the web platform costs about 10 kB of memory for each
 * client. It writes a batch at once, because each write costs more than making all of its text.
 */
export async function writeStream(
  response: ServerResponse,
  { events, between }: EventStream,
  { heartbeats, problem }: Surroundings,
): Promise<void> {
  response.write(`retry: ${RETRY_MS}\n\n`);
  heartbeats.begin(response);
  const send = (batch: readonly StreamEvent[]) => {
    response.write(batch.map(written).join(""));
    heartbeats.written(response, batch.length);
  };
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
    heartbeats.end(response);
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
  return `${id === undefined ? "" : `id: ${inOneLine(id)}\n`}event: ${inOneLine(event)}\ndata: ${json}\n\n`;
}

/** Keeps a text from ending its field, and so from adding fields and events of its own. */
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
  });
}
