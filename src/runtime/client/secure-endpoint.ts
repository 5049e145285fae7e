import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { type AddressInfo, createServer, type Socket } from "node:net";
import type { Endpoint } from "../wire/rpc-client.js";
import { connectSecurely, type PeerTls } from "../wire/secure.js";
import { splice } from "../wire/splice.js";
import { swapToken } from "../wire/swap-token.js";

/**
 * Connects to a front door with TLS. Returns a loopback address of this process that leads to that connection, because
 * the SDK does not support TLS. The address accepts one client, with a random token that only this process knows.
 */
export async function secureEndpoint(endpoint: Endpoint, tls: PeerTls, signal: AbortSignal): Promise<Endpoint> {
  const secure = await connectSecurely(endpoint, tls, signal);
  const swap = { local: randomBytes(32).toString("base64url"), remote: endpoint.token };
  const waiting = new Set<Socket>();
  const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
    waiting.add(socket);
    void swapToken(socket, swap).then((hello) => {
      waiting.delete(socket);
      if (hello === null) return;
      server.close();
      for (const other of waiting) other.destroy();
      secure.write(hello);
      void splice(socket, secure);
    });
  });
  secure.on("error", () => undefined); // `close` follows
  secure.once("close", () => {
    server.close();
    for (const socket of waiting) socket.destroy();
  });
  server.listen(0, "127.0.0.1").unref();
  await once(server, "listening");
  if (secure.destroyed) server.close();
  const { address, port } = server.address() as AddressInfo;
  return { address, port, token: swap.local };
}
