import { type AddressInfo, createServer, type Socket } from "node:net";
import { describe, expect, it, onTestFinished } from "vitest";
import { openUpstream } from "../../src/door/routing/connector.js";
import { RawConnection } from "../../src/runtime/client/raw-connection.js";
import { encodeMessage } from "../../src/runtime/wire/frames.js";
import { eventually } from "../fixtures/eventually.js";
import { MessageReader } from "../fixtures/sessions/message-reader.js";

/** A server that answers only `connect`. The real runtime answers too soon for these tests. */
async function silentServer() {
  const methods: string[] = [];
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => undefined);
    const decoder = new MessageReader();
    socket.on("data", (chunk) => {
      for (const { id, method } of decoder.push(chunk) as { id: number; method: string }[]) {
        methods.push(method);
        if (method === "connect") socket.write(encodeMessage({ id, result: { protocolVersion: 3 } }));
      }
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  const endpoint = { address: "127.0.0.1", port: (server.address() as AddressInfo).port, token: "t" };
  const arrived = async (count: number) =>
    await eventually(
      "the requests at the server",
      () => methods.filter((method) => method === "ping").length === count,
    );
  return { endpoint, arrived, hangUp: () => sockets.forEach((socket) => void socket.destroy()) };
}

/** The outcome of each request. Rejects if a request does not settle, so a test reports the defect and not a time-out. */
async function outcomes(requests: readonly Promise<unknown>[]): Promise<unknown[]> {
  let settled: PromiseSettledResult<unknown>[] | undefined;
  void Promise.allSettled(requests).then((results) => {
    settled = results;
  });
  const results = await eventually("the end of every request", () => settled);
  return results.map((result) => (result.status === "rejected" ? result.reason.code : "answered"));
}

const never = new AbortController().signal;

describe("a request that waits for its answer", () => {
  it("a raw connection's pending requests reject when this side closes the connection", async () => {
    const { endpoint, arrived } = await silentServer();
    const connection = await RawConnection.open(endpoint, never, { lasting: true });
    const requests = [
      connection.request("ping", {}),
      connection.request("ping", {}),
      connection.request("ping", {}, new AbortController().signal),
    ];
    await arrived(3);
    await connection[Symbol.asyncDispose]();
    const unreachable = "FLEET_SERVER_UNREACHABLE";
    expect(await outcomes(requests)).toEqual([unreachable, unreachable, unreachable]);
    expect(await outcomes([connection.request("ping", {})])).toEqual([unreachable]);
    await connection.closed;
  });

  it("a raw connection's pending requests reject when the server closes the connection", async () => {
    const { endpoint, arrived, hangUp } = await silentServer();
    await using connection = await RawConnection.open(endpoint, never, { lasting: true });
    const requests = [connection.request("ping", {}), connection.request("ping", {})];
    await arrived(2);
    hangUp();
    expect(await outcomes(requests)).toEqual(["FLEET_SERVER_UNREACHABLE", "FLEET_SERVER_UNREACHABLE"]);
  });

  it.each(["this side", "the server"])(
    "the pending requests of a front door's upstream connection reject when %s closes the connection",
    async (side) => {
      const { endpoint, arrived, hangUp } = await silentServer();
      const { upstream } = await openUpstream(endpoint, { hello: {} }, never);
      const requests = [upstream.request("ping", {}), upstream.ask("ping", {})];
      await arrived(2);
      if (side === "this side") upstream.destroy();
      else hangUp();
      // This request is made after one side has closed the connection. It must not wait forever either.
      requests.push(upstream.request("ping", {}));
      expect(await outcomes(requests)).toEqual(["FLEET_SERVER_LOST", "FLEET_SERVER_LOST", "FLEET_SERVER_LOST"]);
    },
  );
});

describe("a raw connection", () => {
  const answering = async (bytes: string | null) => {
    const server = createServer((socket) => {
      socket.on("error", () => undefined);
      if (bytes === null) socket.destroy();
      else socket.write(bytes);
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    onTestFinished(() => void server.close());
    return { address: "127.0.0.1", port: (server.address() as AddressInfo).port, token: "t" };
  };

  it.each([
    ["closes the connection", null, "closed the connection."],
    ["answers with another protocol", "HTTP/1.1 200 OK\r\n\r\n", "does not speak the Copilot protocol."],
    ["answers with text that is not JSON", "Content-Length: 3\r\n\r\n{x}", "does not speak the Copilot protocol."],
  ])("RawConnection.open rejects with the reason when the server %s", async (_, bytes, reason) => {
    await expect(RawConnection.open(await answering(bytes), never)).rejects.toMatchObject({
      code: "FLEET_SERVER_UNREACHABLE",
      message: expect.stringContaining(reason),
    });
  });

  it("RawConnection.open rejects with the reason when nothing listens or no answer arrives in time", async () => {
    const nobody = { address: "127.0.0.1", port: 1, token: "t" };
    await expect(RawConnection.open(nobody, never)).rejects.toMatchObject({
      code: "FLEET_SERVER_UNREACHABLE",
      message: expect.stringContaining("cannot be reached (connect ECONNREFUSED"),
      cause: expect.objectContaining({ code: "ECONNREFUSED" }),
    });
    for (const signal of [AbortSignal.timeout(50), AbortSignal.abort()])
      await expect(RawConnection.open(await answering(""), signal)).rejects.toMatchObject({
        code: "FLEET_SERVER_UNREACHABLE",
        message: expect.stringContaining("did not answer in time."),
      });
  });

  it("a raw connection rejects its requests when its signal aborts, unless the connection was opened as lasting", async () => {
    const { endpoint, arrived } = await silentServer();
    const stop = new AbortController();
    const connection = await RawConnection.open(endpoint, stop.signal);
    await using lasting = await RawConnection.open(endpoint, stop.signal, { lasting: true });
    const requests = [connection.request("ping", {}), lasting.request("ping", {})];
    await arrived(2);
    stop.abort();
    await expect(requests[0]).rejects.toMatchObject({
      code: "FLEET_SERVER_UNREACHABLE",
      message: expect.stringContaining("did not answer in time."),
    });
    await connection.closed;
    await lasting[Symbol.asyncDispose]();
    await expect(requests[1]).rejects.toMatchObject({ message: expect.stringContaining("is closed.") });
  });
});
