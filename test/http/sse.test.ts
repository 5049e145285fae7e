import { once } from "node:events";
import { createServer, get, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { expect, it, onTestFinished, vi } from "vitest";
import { streamTurn, type TurnListeners } from "../../src/http/routes/turns.js";
import { type EventStream, type StreamEvent, writeStream } from "../../src/http/sse.js";
import { TestClock } from "../fixtures/fleets/test-clock.js";

type Events = EventStream["events"];

/** Serves a stream of these events, and connects a client, which reads nothing until {@link read} is called. */
async function reading(events: Events, clock = new TestClock(), between?: EventStream["between"]) {
  const counts = { open: 0, events: 0, slow: 0 };
  let response: ServerResponse | undefined;
  let done: Promise<void> | undefined;
  const server = createServer((_, answer) => {
    response = answer;
    const stream = between === undefined ? { events } : { events, between };
    done = writeStream(answer, stream, { clock, counts, problem: () => ({ event: "problem", data: null }) });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  const sent = get({ port: (server.address() as AddressInfo).port, host: "127.0.0.1", agent: false });
  sent.on("error", () => undefined);
  const [incoming] = (await once(sent, "response")) as [IncomingMessage];
  incoming.on("error", () => undefined);
  const client = { text: "", incoming, response, done };
  return client;
}

type Client = Awaited<ReturnType<typeof reading>>;

function read(client: Client): Client {
  client.incoming.setEncoding("utf8").on("data", (text: string) => {
    client.text += text;
  });
  return client;
}

it("a silent stream gets a comment within 15 s, and the next event is still sent", async () => {
  const clock = new TestClock();
  let release = (_: StreamEvent): void => undefined;
  const event = new Promise<StreamEvent>((resolve) => (release = resolve));
  const client = read(
    await reading(
      (async function* () {
        yield [await event];
      })(),
      clock,
    ),
  );
  for (let seconds = 0; seconds < 15; seconds += 3) {
    clock.jump(3_000);
    clock.runDue();
  }
  await expect.poll(() => client.text).toBe("retry: 1000\n\n:\n\n");
  release({ event: "late", data: 1 });
  await expect.poll(() => client.text).toBe("retry: 1000\n\n:\n\nevent: late\ndata: 1\n\n");
  await client.done;
});

/** A source for `between`. Its `send` sends an event to the stream, and is undefined while no stream listens. */
function source() {
  const between: EventStream["between"] = (send) => {
    made.send = send;
    return () => {
      made.send = undefined;
    };
  };
  const made = { between, send: undefined as ((event: StreamEvent) => void) | undefined };
  return made;
}

it("an event from `between` is sent at once, and `between` is stopped when the stream ends", async () => {
  let go = (): void => undefined;
  const open = new Promise<void>((resolve) => (go = resolve));
  const aside = source();
  const events = (async function* () {
    await open;
    yield [{ id: "1", event: "recorded", data: 1 }];
  })();
  const client = read(await reading(events, new TestClock(), aside.between));
  aside.send?.({ event: "request.opened", data: 2 });
  await expect.poll(() => client.text).toBe("retry: 1000\n\nevent: request.opened\ndata: 2\n\n");
  go();
  await client.done;
  await expect.poll(() => client.text).toContain("id: 1\nevent: recorded\ndata: 1\n\n");
  expect(aside.send).toBeUndefined();
});

it("a client that does not read is cut off before events from `between` fill the memory", async () => {
  const aside = source();
  let end = (): void => undefined;
  const gone = new Promise<void>((resolve) => (end = resolve));
  const events = (async function* (): Events {
    yield [{ event: "first", data: 0 }];
    await gone;
  })();
  const client = await reading(events, new TestClock(), aside.between);
  client.response?.once("close", end); // in the API, the signal of the request ends the source
  let sent = 0;
  for (; sent < 1_000 && client.response?.destroyed === false; sent++) {
    aside.send?.({ event: "request.opened", data: "x".repeat(100_000) });
  }
  expect(sent).toBeGreaterThan(10);
  expect(sent).toBeLessThan(200);
  await client.done;
  expect(aside.send).toBeUndefined();
});

it("line breaks in an event's id or name add no field and no event to the stream", async () => {
  const client = read(
    await reading(
      (async function* () {
        yield [{ id: "7\nevent: turn.end", event: "user.message\r\ndata: {}\n\nevent: problem", data: 1 }];
      })(),
    ),
  );
  await once(client.incoming, "end");
  expect(client.text).toBe(
    "retry: 1000\n\nid: 7 event: turn.end\nevent: user.message  data: {}  event: problem\ndata: 1\n\n",
  );
});

it("a turn's stream sends the first delta at once, later deltas in batches of 50 ms, and the end at once", async () => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  onTestFinished(() => void vi.useRealTimers());
  const event = (type: string) => ({ type, id: type, ephemeral: true, data: {} }) as never;
  const [delta, reply] = [event("assistant.message_delta"), { turn: "1", text: "", usage: null } as never];
  let listeners: TurnListeners | undefined;
  let end = (_: never): void => undefined;
  const isWanted = () => true;
  const begun = streamTurn((given) => {
    listeners = given;
    return new Promise((resolve) => (end = resolve));
  }, isWanted);
  const push = async (pushed: never) => {
    listeners?.onEvent(pushed);
    await new Promise(setImmediate);
  };
  await push(event("user.message"));
  const { events } = (await begun).stream;
  const names = async () => (await events.next()).value?.map(({ event: name }) => name);
  expect(await names()).toEqual(["user.message"]);
  await push(delta);
  expect(await names()).toEqual(["assistant.message_delta"]);
  const second = names();
  await push(delta);
  await push(delta);
  vi.advanceTimersByTime(50);
  expect(await second).toEqual(["assistant.message_delta", "assistant.message_delta"]);
  const last = names();
  await push(delta);
  end(reply);
  expect(await last).toEqual(["assistant.message_delta", "turn.end"]);
  expect(await names()).toBeUndefined();
});
