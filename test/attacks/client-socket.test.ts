import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";
import { afterEach, beforeEach, describe, expect, it, onTestFinished, vi } from "vitest";
import { ClientSocket, type ClientSocketOptions } from "../../src/door/wire/client-socket.js";
import { DoorFleet } from "../door/harness.js";
import { RawClient } from "../door/raw-client.js";
import { eventually } from "../fixtures/eventually.js";
import { Stopwatch } from "../fixtures/stopwatch.js";

/** Both ends of a connection: the client's, and the front door's with the names of the callbacks that it received. */
async function pair(options: ClientSocketOptions = {}) {
  const heard: string[] = [];
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as { port: number };
  const accepted = once(server, "connection") as Promise<[Socket]>;
  const client = connect({ host: "127.0.0.1", port });
  onTestFinished(() => {
    client.destroy();
    server.close();
  });
  client.on("error", () => undefined);
  const [socket] = await accepted;
  const listener = {
    onFrames: () => void heard.push("frames"),
    onProtocolError: () => void heard.push("protocol error"),
    onBuffered: () => undefined,
    onFull: () => void heard.push("full"),
    onDrain: () => void heard.push("drain"),
    onClosed: () => void heard.push("closed"),
  };
  const door = new ClientSocket(socket, 8 * 1024 * 1024, options);
  door.listen(listener);
  return { door, client, socket, heard };
}

afterEach(() => {
  vi.useRealTimers();
});

it("the front door sends the first piece of a reply at once, and joins the pieces of the next 3 ms in one write", async () => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "performance"] });
  const { door, socket } = await pair();
  const writes: string[] = [];
  vi.spyOn(socket, "write").mockImplementation((bytes) => writes.push(String(bytes)) > 0);
  const piece = (text: string) => door.sendPiece(Buffer.from(text));
  const nextTick = async () => await new Promise<void>((resolve) => process.nextTick(resolve));
  piece("a");
  await nextTick();
  expect(writes).toEqual(["a"]);
  for (const text of ["b", "c"]) {
    piece(text);
    await nextTick();
  }
  vi.advanceTimersByTime(2);
  expect(writes).toEqual(["a"]);
  vi.advanceTimersByTime(1);
  expect(writes).toEqual(["a", "bc"]);
  // Any other frame takes the pieces along.
  piece("d");
  door.send(Buffer.from("e"));
  await nextTick();
  expect(writes).toEqual(["a", "bc", "de"]);
  vi.advanceTimersByTime(3);
  piece("f");
  await nextTick();
  expect(writes).toEqual(["a", "bc", "de", "f"]);
});

describe("the front door, with its time limit for a whole frame,", () => {
  const MB = 1024 * 1024;
  beforeEach(() => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "performance"] });
  });

  /** Sends a piece, and waits for the acknowledgement that the door sends for each piece of an unfinished frame. */
  async function arrive(client: Socket, piece: string | Buffer): Promise<void> {
    const acknowledged = once(client, "data");
    client.write(piece);
    await acknowledged;
  }

  it("closes a client's connection 30 s after a frame began, even if a byte arrives every second", async () => {
    const { client, socket, heard } = await pair();
    await arrive(client, "Content-Length: 100\r\n\r\n{");
    for (let second = 1; second < 30; second++) {
      vi.advanceTimersByTime(1_000);
      await arrive(client, " ");
    }
    expect(socket.destroyed).toBe(false);
    vi.advanceTimersByTime(1_010);
    expect(socket.destroyed).toBe(true);
    await once(client, "close");
    expect(heard).toEqual(["closed"]);
  });

  it("closes a client's connection 30 s after a frame's header began if the header is still incomplete", async () => {
    const { client, socket } = await pair();
    await arrive(client, "Content-");
    vi.advanceTimersByTime(29_990);
    await arrive(client, "Length: ");
    expect(socket.destroyed).toBe(false);
    vi.advanceTimersByTime(20);
    expect(socket.destroyed).toBe(true);
  });

  it("gives a client enough time for 8 MB at 64 kB/s, and restarts the time limit with each frame", async () => {
    const { client, socket, heard } = await pair();
    const header = `Content-Length: ${8 * MB}\r\n\r\n`;
    for (let frame = 0; frame < 2; frame++) {
      await arrive(client, header);
      for (let part = 1; part < 8; part++) {
        vi.advanceTimersByTime(MB / 64);
        const pieces = Buffer.alloc(MB, 0x20);
        client.write(pieces.subarray(1));
        await arrive(client, pieces.subarray(0, 1));
      }
      vi.advanceTimersByTime(MB / 64 + 20_000);
      client.write(Buffer.alloc(MB, 0x20));
      vi.useRealTimers();
      await eventually("the frame", () => heard.length === frame + 1);
      vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "performance"] });
      expect(socket.destroyed).toBe(false);
    }
    vi.advanceTimersByTime(300_000);
    expect(socket.destroyed).toBe(false);
  });

  it("pauses the time limit of a client's frame while the front door does not read from the client", async () => {
    const { door, client, socket } = await pair();
    await arrive(client, "Content-Length: 10\r\n\r\n{");
    vi.advanceTimersByTime(20_000);
    door.hold("busy");
    vi.advanceTimersByTime(120_000);
    door.letGo("busy");
    vi.advanceTimersByTime(9_000);
    expect(socket.destroyed).toBe(false);
    vi.advanceTimersByTime(1_100);
    expect(socket.destroyed).toBe(true);
  });
});

it("the front door disconnects a client that reads nothing, and keeps a client that reads a long frame slowly", async () => {
  const { door, client, socket, heard } = await pair({ stallMs: 3_000 });
  client.pause();
  const long = 128 * 1024 * 1024;
  door.send(Buffer.alloc(long));
  let taken = 0;
  const began = performance.now();
  while (performance.now() - began < 5_000) {
    const piece = client.read() as Buffer | null;
    taken += piece?.length ?? 0;
    // Read often enough, because the kernel accepts new data from the front door only in pieces of megabytes.
    await new Promise((resolve) => setTimeout(resolve, 8));
  }
  expect(taken).toBeGreaterThan(0);
  expect(taken).toBeLessThan(long);
  expect(socket.destroyed).toBe(false);
  expect(heard).toEqual(["full"]);
  await eventually("the end", () => heard.length > 1);
  expect(heard).toEqual(["full", "closed"]);
});

it.each([
  ["bytes that are not a frame", "GET / HTTP/1.1\r\n\r\n", -32700],
  ["a frame that is not a request", "Content-Length: 2\r\n\r\n{}", -32600],
])("the front door sends one error and hangs up, even if the client keeps sending %s", async (_, broken, code) => {
  await using at = await DoorFleet.open();
  const client = await RawClient.as(at.url, await at.token("ann"));
  client.socket.allowHalfOpen = true; // the client keeps sending after the front door has ended its side
  client.bytes(broken);
  const talking = setInterval(() => client.bytes(broken), 50);
  onTestFinished(() => clearInterval(talking));
  using watch = new Stopwatch();
  await eventually("the end of the connection", () => client.closed);
  expect(watch.ms).toBeLessThan(2_000);
  expect(client.received.filter(({ error }) => error !== undefined)).toMatchObject([{ id: null, error: { code } }]);
  expect(at.events.filter(({ event }) => event === "protocol-error")).toHaveLength(1);
  await eventually("the door knows", () => at.door.clients === 0);
});

/** Returns a function that checks whether the front door has answered no request for half a second. */
function standstill(at: DoorFleet): () => boolean {
  let answered = -1;
  let since = 0;
  return () => {
    if (at.requests.length !== answered) since = performance.now();
    answered = at.requests.length;
    return performance.now() - since > 500;
  };
}

it("the front door closes promptly even if a client reads nothing", async () => {
  await using at = await DoorFleet.open();
  const client = await RawClient.as(at.url, await at.token("ann"));
  await client.requestOk("session.create", { sessionId: "s" });
  await client.turnOk("s", `${"x ".repeat(100_000)}`);
  client.socket.pause();
  for (let id = 0; id < 100; id++) client.send({ id, method: "session.getMessages", params: { sessionId: "s" } });
  // The front door accepts requests until the socket buffers are full.
  await eventually("a standstill", standstill(at));
  expect(at.requests.length).toBeLessThan(100);
  using watch = new Stopwatch();
  await at.door.close();
  expect(watch.ms).toBeLessThan(5_000);
});

it("the front door stops reading from a client that floods it, until the client reads its answers", async () => {
  await using at = await DoorFleet.open();
  const client = await RawClient.as(at.url, await at.token("ann"));
  client.socket.pause();
  const method = "x".repeat(190);
  let id = 0;
  let taken = true;
  while (taken && id < 400_000) {
    for (let count = 0; count < 1_000; count++) client.send({ id: id++, method });
    if (!client.socket.writableNeedDrain) continue;
    taken = false;
    client.socket.once("drain", () => {
      taken = true;
    });
    const stands = standstill(at);
    await eventually("room for more, or a standstill", () => taken || stands());
  }
  expect(taken).toBe(false);
  const answers = at.requests.length;
  expect(answers).toBeLessThan(60_000);
  // The front door continues when the client reads.
  client.socket.resume();
  await eventually("the rest", () => at.requests.length > answers && client.received.length > answers, 30_000);
});
