import { once } from "node:events";
import { type AddressInfo, createServer, Socket } from "node:net";
import { networkInterfaces } from "node:os";
import { expect, it, onTestFinished, vi } from "vitest";
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

it("connectClient leaves no unhandled rejection behind when the server resets the connection before the handshake", async () => {
  const server = createServer();
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  onTestFinished(() => void server.close());
  const { port } = server.address() as AddressInfo;
  // The reset has to arrive within one turn of the event loop. A real server cannot time that, so imitate the reset.
  const write = vi.spyOn(Socket.prototype, "write").mockImplementation(function (this: Socket, ...args: unknown[]) {
    const reset = Object.assign(new Error("write ECONNRESET"), { code: "ECONNRESET" });
    this.destroy(reset);
    (args.at(-1) as (error: Error) => void)(reset);
    return false;
  });
  onTestFinished(() => void write.mockRestore());
  const unhandled: unknown[] = [];
  const listeners = process.listeners("unhandledRejection");
  process.removeAllListeners("unhandledRejection").on("unhandledRejection", (reason) => unhandled.push(reason));
  onTestFinished(() => {
    process.removeAllListeners("unhandledRejection");
    for (const listener of listeners) process.on("unhandledRejection", listener);
  });

  const endpoint = { address: "127.0.0.1", port, token: "token" };
  await expect(connectClient(endpoint, {}, new AbortController().signal)).rejects.toMatchObject({
    code: "FLEET_SERVER_UNREACHABLE",
  });
  expect(write).toHaveBeenCalled();
  await new Promise((resolve) => setImmediate(resolve)); // Node.js reports unhandled rejections before this
  expect(unhandled).toEqual([]);
});

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
