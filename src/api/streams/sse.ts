import type { Clock } from "../../runtime/clock.js";

/** A server-sent event. */
export interface StreamEvent {
  /** With this id, a client goes on after the event. Undefined for an event that nobody can ask for again. */
  id?: string | undefined;
  event: string;
  data: unknown;
}

export const STREAM_TYPE = "text/event-stream";

/** How long a stream may be silent, in milliseconds. Proxies close connections that are silent for longer. */
const HEARTBEAT_MS = 15_000;
/** How much is made ready for a client that does not read, in bytes. */
const READY_BYTES = 64 * 1024;
/** How long a client waits before it connects again, in milliseconds. */
const RETRY_MS = 1_000;

/**
 * Writes events as a stream of server-sent events (WHATWG HTML, section 9.2), with comments in long silences. Takes the next
 * event only when the client has read most of those before.
 */
export function writeStream(events: AsyncGenerator<StreamEvent, void, undefined>, clock: Clock): ReadableStream {
  const encoder = new TextEncoder();
  let next: Promise<IteratorResult<StreamEvent, void>> | undefined;
  return new ReadableStream<Uint8Array>(
    {
      start: (controller) => controller.enqueue(encoder.encode(`retry: ${RETRY_MS}\n\n`)),
      async pull(controller) {
        next ??= events.next();
        let cancel = (): void => undefined;
        const silence = new Promise<null>((resolve) => {
          cancel = clock.after(HEARTBEAT_MS, () => resolve(null));
        });
        const found = await Promise.race([next, silence]).finally(cancel);
        if (found === null) return controller.enqueue(encoder.encode(":\n\n"));
        next = undefined;
        if (found.done === true) controller.close();
        else controller.enqueue(encoder.encode(written(found.value)));
      },
      async cancel() {
        await events.return();
      },
    },
    new ByteLengthQueuingStrategy({ highWaterMark: READY_BYTES }),
  );
}

function written({ id, event, data }: StreamEvent): string {
  return `${id === undefined ? "" : `id: ${id}\n`}event: ${event}\ndata: ${JSON.stringify(data)}\n\n`;
}
