import { Socket } from "node:net";
import type { CopilotClient, CopilotClientOptions } from "@github/copilot-sdk";
import { FleetError } from "../../errors.js";
import { abortable } from "../deadline.js";
import { acknowledgePromptly } from "./acknowledge.js";
import type { Endpoint } from "./raw-connection.js";

/** A connected SDK client and the promise of its end. */
export interface ConnectedClient {
  client: CopilotClient;
  /** Resolves when the connection is closed, by either side. Never rejects. Pending for ever if the SDK hides its socket. */
  closed: Promise<void>;
  /**
   * Sees on the wire whether a prompt has begun in the session from now on. The SDK drops events that it has received and not
   * handed out when the connection closes.
   */
  watchPrompt(sessionId: string): PromptWatch;
  /** Cuts the connection, whatever the other side does. The SDK's own `stop` waits for that side to hang up, too. */
  destroy(): void;
}

/**
 * Connects the SDK's client to a server whose identity was proved, without the Nagle delays of the SDK used as it is
 * (see {@link acknowledgePromptly}). The socket is a private field of the SDK's client, so it is touched only if it is
 * really there; without it the client works as usual, slower.
 *
 * @throws FleetError `FLEET_SERVER_UNREACHABLE`.
 */
export async function connectClient(
  endpoint: Endpoint,
  options: Omit<CopilotClientOptions, "connection">,
  signal: AbortSignal,
): Promise<ConnectedClient> {
  const { CopilotClient, RuntimeConnection } = await import("@github/copilot-sdk");
  const where = `${endpoint.address}:${endpoint.port}`;
  const client = new CopilotClient({
    ...options,
    connection: RuntimeConnection.forUri(where, { connectionToken: endpoint.token }),
  });
  const started = startPromptly(client);
  try {
    await abortable(started, signal);
  } catch (cause) {
    started.catch(() => undefined); // its outcome no longer matters: the client is thrown away
    await client.forceStop();
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new FleetError("FLEET_SERVER_UNREACHABLE", `The server at ${where} cannot be used: ${reason}.`, {
      cause,
      suggestions: ["copilotfleet ps", "copilotfleet restart --user USER --force"],
    });
  }
  const socket = socketOf(client);
  const closed = new Promise<void>((resolve) => {
    if (socket?.destroyed === true) resolve();
    else socket?.once("close", () => resolve());
  });
  quietWriteErrors(client);
  // The SDK leaves requests that wait for an answer waiting when the connection closes; this rejects them.
  closed.then(() => client.forceStop()).catch(() => undefined);
  return { client, closed, watchPrompt: (id) => watchPrompt(socket, id), destroy: () => void socket?.destroy() };
}

export interface PromptWatch extends Disposable {
  readonly hasBegun: boolean;
}

/** By the order in which the runtime writes the fields (measured with 1.0.85). */
function watchPrompt(socket: Socket | undefined, sessionId: string): PromptWatch {
  const wanted = Buffer.from(`"sessionId":${JSON.stringify(sessionId)},"event":{"type":"user.message"`);
  // Without the socket nothing is seen, so that it must count as begun.
  let hasBegun = socket === undefined;
  let end = Buffer.alloc(0);
  const look = (chunk: Buffer) => {
    const seam = Buffer.concat([end, chunk.subarray(0, wanted.length)]);
    hasBegun ||= seam.includes(wanted) || chunk.includes(wanted);
    end = Buffer.concat([end, chunk]).subarray(-wanted.length);
  };
  socket?.on("data", look);
  return {
    get hasBegun() {
      return hasBegun;
    },
    [Symbol.dispose]: () => void socket?.off("data", look),
  };
}

/** `start()` makes the socket before its first await: it is tuned then, so that the handshake is fast as well. */
function startPromptly(client: CopilotClient): Promise<void> {
  const started = client.start();
  const socket = socketOf(client);
  if (socket !== undefined) acknowledgePromptly(socket);
  return started;
}

/**
 * A request that can no longer be written (the server has just died) rejects a second promise inside vscode-jsonrpc 8,
 * one that nobody can catch (`sendRequest` throws in an async executor): it would end this whole process. The SDK has a
 * switch against that, private like the socket, which it sets for servers that it started itself.
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
