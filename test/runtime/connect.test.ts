import { once } from "node:events";
import { type AddressInfo, createServer, Socket } from "node:net";
import { networkInterfaces } from "node:os";
import { expect, it, onTestFinished } from "vitest";
import { connectClient, watchPrompt } from "../../src/runtime/client/connect.js";

const hasIpv6 = Object.values(networkInterfaces()).some((own) => own?.some(({ address }) => address === "::1"));

it.each([["127.0.0.1", "127.0.0.1"], ...(hasIpv6 ? [["::1", "[::1]"]] : [])])(
  "connectClient rejects as soon as the server at %s closes the connection during the handshake",
  async (address, shown) => {
    const server = createServer((socket) => {
      socket.once("data", () => socket.destroy());
    });
    server.listen(0, address);
    await once(server, "listening");
    onTestFinished(() => void server.close());
    const { port } = server.address() as AddressInfo;
    const endpoint = { address: String(address), port, token: "token" };
    // This signal never aborts, so only the closed connection can end the wait.
    await expect(connectClient(endpoint, {}, new AbortController().signal)).rejects.toMatchObject({
      code: "FLEET_SERVER_UNREACHABLE",
      message: expect.stringContaining(`at ${shown}:${port} cannot be used`),
    });
  },
);

it("watchPrompt removes its listener once its prompt has begun, even if the prompt's event arrives in two pieces", () => {
  const socket = new Socket();
  onTestFinished(() => void socket.destroy());
  const [first, second] = [watchPrompt(socket, "a"), watchPrompt(socket, "b")];
  const event = (id: string) => Buffer.from(`{"sessionId":"${id}","event":{"type":"user.message","data":{}}}`);
  socket.emit("data", Buffer.from('{"sessionId":"a","event":{"type":"assistant.message_delta"}}'));
  expect([first.hasBegun, second.hasBegun, socket.listenerCount("data")]).toEqual([false, false, 2]);
  socket.emit("data", event("a"));
  expect([first.hasBegun, second.hasBegun, socket.listenerCount("data")]).toEqual([true, false, 1]);
  socket.emit("data", event("b").subarray(0, 20));
  socket.emit("data", event("b").subarray(20));
  expect([second.hasBegun, socket.listenerCount("data")]).toEqual([true, 0]);
});
