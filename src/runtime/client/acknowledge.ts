import type { Socket } from "node:net";
import { encodeFrame } from "./frames.js";

/** Notifications whose method begins with `$/` are ignored by the runtime and by vscode-jsonrpc (LSP, "$ requests"). */
const ACKNOWLEDGEMENT = encodeFrame({ jsonrpc: "2.0", method: "$/ack" });

/**
 * Takes the two Nagle delays out of a connection to a server.
 *
 * Neither the SDK's client nor the runtime sets TCP_NODELAY, and both write header and body apart. Each second small
 * write then waits for the peer's acknowledgement, which the peer's kernel delays by about 40 ms. Our own direction is
 * mended by TCP_NODELAY. The server's is mended by sending something whenever something arrives: the segment carries
 * the acknowledgement at once, which releases the server's held one.
 *
 * The notifications are bounded: one per chunk received, and never while our own send buffer is filling up.
 */
export function acknowledgePromptly(socket: Socket): void {
  socket.setNoDelay(true);
  socket.on("data", () => {
    if (socket.writable && socket.writableLength === 0) socket.write(ACKNOWLEDGEMENT);
  });
}
