import { once } from "node:events";
import { type AddressInfo, createServer } from "node:net";
import { expect, it, onTestFinished } from "vitest";
import { connectClient } from "../../src/runtime/client/connect.js";

it("connectClient refuses the connection as soon as the server closes it during the handshake", async () => {
  const server = createServer((socket) => {
    socket.once("data", () => socket.destroy());
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  onTestFinished(() => void server.close());
  const { port } = server.address() as AddressInfo;
  const endpoint = { address: "127.0.0.1", port, token: "token" };
  // Nothing else ends the wait: this signal never aborts.
  await expect(connectClient(endpoint, {}, new AbortController().signal)).rejects.toMatchObject({
    code: "FLEET_SERVER_UNREACHABLE",
    message: expect.stringContaining(`127.0.0.1:${port}`),
  });
});
