import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { type AddressInfo, createServer, Socket } from "node:net";
import { setImmediate as yieldToOthers } from "node:timers/promises";
import type { CopilotClient, CopilotClientOptions } from "@github/copilot-sdk";
import { abortable } from "../../base/clock.js";
import { FleetError } from "../../base/errors.js";
import { showAddress } from "../launch/listen.js";
import { acknowledgePromptly } from "../wire/frames.js";
import type { Endpoint } from "../wire/rpc-client.js";
import { connectSecurely, type PeerTls, splice, swapToken } from "../wire/secure.js";

export interface ConnectedClient {
  client: CopilotClient;
  /** Resolves when either side closes the connection. Never rejects. Stays pending if the SDK hides its socket. */
  closed: Promise<void>;
  /**
   * Watches whether a prompt begins. Reads the socket itself, because the SDK drops events when the connection closes.
   */
  watchPrompt(sessionId: string): PromptWatch;
  /** Closes the connection at once. The SDK's own `stop` waits until the other side closes it, too. */
  destroy(): void;
}

/**
 * Connects the SDK's client to a server. The caller must have checked the server's identity. Reads the client's socket
 * from a private field, and changes it to avoid Nagle delays (see `wire/frames.ts`). If the SDK no longer has that
 * field, the client still works, but more slowly.
 */
export async function connectClient(
  endpoint: Endpoint,
  options: Omit<CopilotClientOptions, "connection">,
  signal: AbortSignal,
): Promise<ConnectedClient> {
  const { CopilotClient, RuntimeConnection } = await import("@github/copilot-sdk");
  const where = showAddress({ host: endpoint.address, port: endpoint.port });
  const { address, port, token, noDelay } = await plainEndpoint(endpoint, signal).catch((cause: unknown): never => {
    signal.throwIfAborted();
    throw unusable(where, cause);
  });
  const connection = RuntimeConnection.forUri(showAddress({ host: address, port }), { connectionToken: token });
  const client = new CopilotClient({ ...options, connection });
  const started = client.start();
  // `start()` makes the socket before its first await. Tune it now, so that the handshake is fast, too.
  const socket = socketOf(client);
  socket?.setNoDelay(true);
  if (socket !== undefined && noDelay !== true) acknowledgePromptly(socket);
  // `quietWriteErrors` needs the client's writer. The SDK's own "connect" listener makes the writer, and runs before
  // this listener.
  socket?.once("connect", () => quietWriteErrors(client));
  const closed = endOf(socket);
  try {
    // The SDK does not notice if the connection closes during the handshake.
    await abortable(Promise.race([started, closed.then(refuseClosed)]), signal);
  } catch (cause) {
    started.catch(() => undefined); // its outcome no longer matters, because we discard the client
    await client.forceStop();
    throw unusable(where, cause);
  }
  quietWriteErrors(client); // if the SDK hides its socket, the listener above was never added
  // When the connection closes, the SDK does not settle unanswered requests. Stopping the client rejects them.
  closed.then(() => client.forceStop()).catch(() => undefined);
  return { client, closed, watchPrompt: (id) => watchPrompt(socket, id), destroy: () => void socket?.destroy() };
}

/** Returns an endpoint without TLS that leads to the same server, because the SDK does not support TLS. */
async function plainEndpoint(endpoint: Endpoint, signal: AbortSignal): Promise<Endpoint> {
  if (endpoint.tls === undefined) return endpoint;
  const { secureEndpoint } = await import("./connect.js");
  return await secureEndpoint(endpoint, endpoint.tls, signal);
}

function unusable(where: string, cause: unknown): FleetError {
  const reason = cause instanceof Error ? cause.message : String(cause);
  return new FleetError("FLEET_SERVER_UNREACHABLE", `The server at ${where} cannot be used: ${reason}.`, {
    cause,
    suggestions: ["copilotfleet ps", "copilotfleet restart --user USER --force"],
  });
}

export interface PromptWatch extends Disposable {
  readonly hasBegun: boolean;
}

/**
 * Watches the bytes of the socket for the prompt's `user.message` event. Stops at that event to save time, because the
 * other turns on the connection may stream many bytes. Depends on the order in which the runtime writes the event's
 * fields (as of 1.0.85).
 */
export function watchPrompt(socket: Socket | undefined, sessionId: string): PromptWatch {
  const wanted = Buffer.from(`"sessionId":${JSON.stringify(sessionId)},"event":{"type":"user.message"`);
  // Without the socket we see nothing, so we must assume that the prompt has begun.
  let hasBegun = socket === undefined;
  let end = Buffer.alloc(0);
  const look = (chunk: Buffer) => {
    const seam = Buffer.concat([end, chunk.subarray(0, wanted.length)]);
    hasBegun ||= seam.includes(wanted) || chunk.includes(wanted);
    end = Buffer.concat([end, chunk]).subarray(-wanted.length);
    if (hasBegun) socket?.off("data", look);
  };
  // Each turn adds a listener, and many turns may begin at once.
  socket?.setMaxListeners(0);
  socket?.on("data", look);
  return {
    get hasBegun() {
      return hasBegun;
    },
    [Symbol.dispose]: () => void socket?.off("data", look),
  };
}

function endOf(socket: Socket | undefined): Promise<void> {
  return new Promise((resolve) => {
    if (socket?.destroyed === true) resolve();
    else socket?.once("close", () => resolve());
  });
}

async function refuseClosed(): Promise<never> {
  await yieldToOthers(); // prefer the SDK's own error, which has the cause
  throw new Error("it closed the connection");
}

/**
 * Prevents a crash of this process. After a server's death, vscode-jsonrpc 8 rejects a second promise for each request,
 * and nobody can catch that rejection. The SDK prevents such rejections only for servers that it started itself.
 */
function quietWriteErrors(client: CopilotClient): void {
  const { messageWriter } = client as unknown as { messageWriter?: unknown };
  if (typeof messageWriter !== "object" || messageWriter === null || !("suppressWriteErrors" in messageWriter)) return;
  messageWriter.suppressWriteErrors = true;
}

function socketOf(client: CopilotClient): Socket | undefined {
  const { socket } = client as unknown as { socket?: unknown };
  return socket instanceof Socket ? socket : undefined;
}

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
  return { address, port, token: swap.local, noDelay: true };
}
