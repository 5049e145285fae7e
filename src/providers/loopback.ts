import { once } from "node:events";
import { createServer, type RequestListener } from "node:http";
import type { AddressInfo, Socket } from "node:net";

/**
 * How long an unused connection of a server stays open, in milliseconds. It is longer than usual pauses between turns,
 * because a request fails if it arrives just when its connection is being closed.
 */
const KEEP_ALIVE_MS = 10 * 60 * 1000;

/** An HTTP server on loopback that stands in for a model service. */
export interface LoopbackServer {
  readonly port: number;
  /** Serves a connection that another listener has accepted, such as a Unix socket. */
  accept(connection: Socket): void;
  /** Stops listening and closes all connections. May be called twice. */
  close(): Promise<void>;
}

/** Starts a server that handles requests. @param port 0: any free one */
export async function listenOnLoopback(handle: RequestListener, port = 0): Promise<LoopbackServer> {
  // Set `noDelay`, because Nagle's algorithm would delay the small pieces of an answer.
  const server = createServer({ noDelay: true, keepAliveTimeout: KEEP_ALIVE_MS, requestTimeout: 0 }, handle);
  server.listen(port, "127.0.0.1");
  await once(server, "listening");
  return {
    port: (server.address() as AddressInfo).port,
    accept: (connection) => void server.emit("connection", connection),
    close: async () => {
      if (!server.listening) return;
      const closed = once(server, "close");
      server.close();
      server.closeAllConnections();
      await closed;
    },
  };
}
