import type { Socket } from "node:net";
import { encodeMessage } from "./frames.js";

/** Both sides ignore notifications whose method begins with `$/` (Language Server Protocol, "$ requests"). */
export const ACKNOWLEDGE = "$/ack";
export const ACKNOWLEDGEMENT = encodeMessage({ method: ACKNOWLEDGE });

/**
 * Avoids the Nagle delays on a connection to a server. The SDK's client and the runtime write header and body
 * separately and do not set TCP_NODELAY. So the body waits until the other side's kernel acknowledges the header, which
 * that kernel delays by about 40 ms.
 *
 * For our direction, this function sets TCP_NODELAY. For the server's direction, it answers each chunk that arrives
 * with a notification, because the packet of the notification carries the TCP acknowledgement at once. It sends no
 * notification while the send buffer is not empty.
 *
 * @param isWanted whether to acknowledge the chunk that has just arrived. Default: always.
 */
export function acknowledgePromptly(socket: Socket, isWanted?: () => boolean): void {
  socket.setNoDelay(true);
  socket.on("data", () => {
    if (isWanted?.() !== false && socket.writable && socket.writableLength === 0) socket.write(ACKNOWLEDGEMENT);
  });
}
