import { once } from "node:events";
import type { Socket } from "node:net";
import { type ConnectionOptions, connect } from "node:tls";
import { abortable } from "../clock.js";

/**
 * The authorities that we trust to sign the other end's certificate, and the certificate and key that we present to it.
 */
export type PeerTls = Pick<ConnectionOptions, "ca" | "cert" | "key">;

/**
 * Connects with TLS, and checks the other end's certificate and the name in it. The caller gets the socket only after
 * both checks have succeeded.
 *
 * @throws the error of the connection or of the check; the signal's reason when the signal aborts.
 */
export async function connectSecurely(
  { address, port }: { address: string; port: number },
  tls: PeerTls,
  signal: AbortSignal,
): Promise<Socket> {
  signal.throwIfAborted();
  const options = { minVersion: "TLSv1.2", rejectUnauthorized: true, allowHalfOpen: true } as const;
  const socket = connect({ host: address, port, ...tls, ...options });
  try {
    await abortable(once(socket, "secureConnect"), signal); // rejects on "error"
    return socket.setNoDelay(true);
  } catch (error) {
    socket.on("error", () => undefined).destroy();
    throw error;
  }
}
