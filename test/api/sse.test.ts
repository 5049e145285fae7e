import { expect, it } from "vitest";
import { type StreamEvent, writeStream } from "../../src/api/streams/sse.js";
import { TestClock } from "../fixtures/fleets/test-clock.js";

function readerOf(events: AsyncGenerator<StreamEvent, void, undefined>, clock = new TestClock()) {
  const reader = (writeStream(events, clock) as ReadableStream<Uint8Array>).getReader();
  return { reader, next: async () => new TextDecoder().decode((await reader.read()).value) };
}

it("an event has its id, its name and its data in one line each", async () => {
  const { next, reader } = readerOf(
    (async function* () {
      yield { id: "7", event: "user.message", data: { content: "a\nb\r\nid: 8" } };
      yield { event: "assistant.message_delta", data: null };
    })(),
  );
  expect(await next()).toBe("retry: 1000\n\n");
  expect(await next()).toBe('id: 7\nevent: user.message\ndata: {"content":"a\\nb\\r\\nid: 8"}\n\n');
  expect(await next()).toBe("event: assistant.message_delta\ndata: null\n\n");
  expect(await reader.read()).toMatchObject({ done: true });
});

it("a comment comes after 15 s of silence, and no event is lost by it", async () => {
  const clock = new TestClock();
  let release = (_: StreamEvent): void => undefined;
  const event = new Promise<StreamEvent>((resolve) => (release = resolve));
  const { next } = readerOf(
    (async function* () {
      yield await event;
    })(),
    clock,
  );
  await next();
  const comment = next();
  await clock.advance(15_000);
  expect(await comment).toBe(":\n\n");
  release({ event: "late", data: 1 });
  expect(await next()).toBe("event: late\ndata: 1\n\n");
});

it("a client that does not read makes the stream take only a few events", async () => {
  let taken = 0;
  const { next, reader } = readerOf(
    (async function* () {
      for (;;) {
        taken++;
        yield { event: "large", data: "x".repeat(10_000) };
      }
    })(),
  );
  await next();
  await new Promise(setImmediate);
  expect(taken).toBeLessThan(20);
  await reader.cancel();
});
