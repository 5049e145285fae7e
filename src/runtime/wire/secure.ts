import { timingSafeEqual } from "node:crypto";
import { once } from "node:events";
import type { Socket } from "node:net";
import { type ConnectionOptions, connect } from "node:tls";
import { abortable } from "../../base/clock.js";
import { encodeMessage, FrameSplitter } from "./frames.js";

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

/**
 * Forwards bytes between two sockets in both directions. Also forwards the end of each direction. If one side reads
 * slowly, the other side has to send slowly. Resolves when both sockets have closed. Never rejects.
 */
export async function splice(one: Socket, other: Socket): Promise<void> {
  const ends = [joined(one, other), joined(other, one)];
  await Promise.all(ends);
}

async function joined(from: Socket, to: Socket): Promise<void> {
  from.on("error", () => undefined); // `close` follows
  from.pipe(to);
  await new Promise<void>((resolve) => {
    const onClose = () => {
      // After an orderly end, `to` still sends what it has buffered.
      if (from.readableEnded) to.destroySoon();
      else to.destroy();
      resolve();
    };
    if (from.destroyed) onClose();
    else from.once("close", onClose);
  });
}

/** The longest frame that may contain `connect`, in bytes, and how long it may take to arrive, in milliseconds. */
const HELLO_BYTES = 16 * 1024;
const HELLO_MS = 10_000;
/** How long a refused client may take to read the refusal, in milliseconds. */
const END_MS = 1_000;
/** The runtime's code for a wrong token (measured with 1.0.85). */
const AUTHENTICATION_FAILED = -32002;

export interface TokenSwap {
  /** The token that the client must present. */
  local: string;
  /** The token that replaces `local`. */
  remote: string;
}

/**
 * Reads a client's first request, and replaces its token. Refuses the client if the token is wrong.
 *
 * @returns everything that the client has sent so far, with the token replaced; null if the client was refused,
 * disconnected, or sent no complete request in time
 */
export async function swapToken(client: Socket, swap: TokenSwap): Promise<Buffer | null> {
  const splitter = new FrameSplitter(HELLO_BYTES);
  const received: Buffer[] = [];
  return await new Promise((resolve) => {
    const settle = (bytes: Buffer | null) => {
      clearTimeout(timer);
      client.off("data", onData).off("close", onClose).pause();
      if (bytes === null) client.resume();
      resolve(bytes);
    };
    const refuse = (id: unknown) => {
      client.end(encodeMessage({ id, error: { code: AUTHENTICATION_FAILED, message: "AUTHENTICATION_FAILED" } }));
      setTimeout(() => client.destroy(), END_MS).unref(); // a client that stays connected would keep the socket open
      settle(null);
    };
    const onData = (chunk: Buffer) => {
      received.push(chunk);
      try {
        const [first] = splitter.push(chunk);
        if (first === undefined) return;
        const request = JSON.parse(first.body.toString()) as Hello;
        if (request.method !== "connect" || !isSame(request.params?.token, swap.local)) refuse(request.id ?? null);
        else {
          const swapped = encodeMessage({ ...request, params: { ...request.params, token: swap.remote } });
          settle(Buffer.concat([swapped, Buffer.concat(received).subarray(first.raw.length)]));
        }
      } catch {
        refuse(null);
      }
    };
    const onClose = () => settle(null);
    const timer = setTimeout(() => client.destroy(), HELLO_MS);
    timer.unref();
    client.on("error", () => undefined); // `close` follows
    client.on("data", onData).once("close", onClose);
  });
}

interface Hello {
  id?: unknown;
  method?: unknown;
  params?: { token?: unknown };
}

function isSame(shown: unknown, wanted: string): boolean {
  const [one, other] = [Buffer.from(String(shown)), Buffer.from(wanted)];
  return one.length === other.length && timingSafeEqual(one, other);
}
