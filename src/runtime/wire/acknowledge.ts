import type { Socket } from "node:net";
import { encodeMessage } from "./frames.js";

/** Runtimes, vscode-jsonrpc and other clients ignore notifications whose method begins with `$/` (LSP, "$ requests"). */
export const ACKNOWLEDGE = "$/ack";
export const ACKNOWLEDGEMENT = encodeMessage({ method: ACKNOWLEDGE });

/**
 * Avoids the two Nagle delays on a connection to a server. Neither the SDK's client nor the runtime sets TCP_NODELAY,
 * and both write the header and the body separately. The second small write then waits for the peer's acknowledgement,
 * which the peer's kernel delays by about 40 ms. TCP_NODELAY solves this for our direction. For the server's direction,
 * we send something whenever something arrives, because that segment carries the acknowledgement at once.
 *
 * We send one notification for each chunk that we receive, and none while our send buffer fills up.
 */
export function acknowledgePromptly(socket: Socket): void {
  socket.setNoDelay(true);
  socket.on("data", () => {
    if (socket.writable && socket.writableLength === 0) socket.write(ACKNOWLEDGEMENT);
  });
}
