import { once } from "node:events";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { expect, it } from "vitest";
import { NEVER } from "../../src/base/clock.js";
import { encodeMessage, FrameSplitter } from "../../src/runtime/wire/frames.js";
import { RpcClient } from "../../src/runtime/wire/rpc-client.js";
import { eventually } from "../fixtures/eventually.js";

/** A server that answers every request, and collects the methods of all messages that it receives. */
async function listening() {
  const methods: string[] = [];
  const sockets: Socket[] = [];
  const server = createServer((socket) => {
    const splitter = new FrameSplitter(1024 * 1024);
    sockets.push(socket);
    socket.on("data", (chunk) => {
      for (const { body } of splitter.push(chunk)) {
        const { id, method } = JSON.parse(body.toString()) as { id?: string; method: string };
        methods.push(method);
        if (id !== undefined) socket.write(encodeMessage({ id, result: {} }));
      }
    });
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  return {
    endpoint: { address: "127.0.0.1", port, token: "t" },
    methods,
    send: (method: string) => void sockets[0]?.write(encodeMessage({ method, params: {} })),
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, "close");
    },
  };
}

it.each([
  { isIdle: true, expected: ["ping"] },
  { isIdle: false, expected: ["$/ack", "ping"] },
])("RpcClient acknowledges a notification, unless its listener is idle (isIdle: $isIdle)", async (at) => {
  await using server = await listening();
  let frames = 0;
  const listener = {
    isIdle: at.isIdle,
    onFrame: () => void frames++,
    onDrain: () => undefined,
    onFault: () => undefined,
    onClosed: () => undefined,
  };
  const { client } = await RpcClient.dial(server.endpoint, { hello: {}, listener }, NEVER);
  await eventually("the answer to connect is acknowledged", () => server.methods.includes("$/ack"));
  server.methods.length = 0;
  server.send("session.lifecycle");
  await eventually("the frame has come", () => frames === 1);
  await client.request("ping", {});
  expect(server.methods.slice(0, at.expected.length)).toEqual(at.expected);
  client.destroy();
  await client.ended;
});
