import { randomBytes } from "node:crypto";
import { connect, type Socket } from "node:net";
import { FleetError, quote } from "../../errors.js";
import { acknowledgePromptly } from "../../runtime/client/acknowledge.js";
import { type Endpoint, RpcError } from "../../runtime/client/raw-connection.js";
import { abortable, deadline, isTimeout } from "../../runtime/deadline.js";
import { type Protocol, serverProtocol } from "../policy/protocols.js";
import type { Params, RpcId } from "./client-message.js";
import { type Frame, FrameSplitter } from "./frames.js";
import { encodeMessage } from "./refusals.js";
import { parse, readServerFrame, type ServerMessage } from "./server-message.js";

/** Far above what a server sends, and far below what would exhaust memory. */
const MAX_FRAME_BYTES = 256 * 1024 * 1024;

/** How long a server may take to answer a request that holds up other requests, in milliseconds. */
const ASK_MS = 30_000;

/** How an upstream connection reports to the client connection that it serves. */
export interface UpstreamListener {
  /** Called for each frame that does not answer one of the front door's own requests. */
  onFrame(message: ServerMessage, frame: Frame): void;
  /** Called before and after the frames that arrived together. */
  onBatch(edge: "begin" | "end"): void;
  /** The server accepts more data again after `send` returned false. */
  onDrain(): void;
  /**
   * The front door hangs up, because the other end broke the protocol or handling its data failed. `onClosed` follows.
   *
   * @param error a {@link ProtocolError}, or a bug of ours
   */
  onFault(error: unknown): void;
  /** Called once when the connection has ended, whichever end closed it. */
  onClosed(): void;
}

export interface OpenUpstream {
  upstream: Upstream;
  /** The other end's answer to `connect`. */
  greeting: Params;
  /** The protocol that the other end speaks. */
  protocol: Protocol;
}

interface Waiting {
  resolve(result: unknown): void;
  onResult: ((result: unknown) => void) | undefined;
  reject(error: Error): void;
}

/**
 * One client's connection to one server or to another front door. The client's requests and those of the front door
 * itself share it.
 */
export class Upstream {
  readonly #socket: Socket;
  readonly #splitter = new FrameSplitter(MAX_FRAME_BYTES);
  readonly #listener: UpstreamListener;
  /** Random, so that a client cannot guess it and use an id of ours. */
  readonly #prefix = `fleet-${randomBytes(9).toString("base64url")}-`;
  readonly #waiting = new Map<RpcId, Waiting>();
  #sequence = 0;
  #closed = false;

  private constructor(socket: Socket, listener: UpstreamListener) {
    this.#socket = socket;
    this.#listener = listener;
    acknowledgePromptly(socket);
    socket.setKeepAlive(true, 30_000);
    socket.on("data", (chunk) => this.#receive(chunk));
    socket.on("drain", () => listener.onDrain());
    socket.on("error", () => undefined); // `close` follows and reports the end
    socket.once("close", () => this.#end());
  }

  /**
   * Connects to a server whose identity was proved, with the server's token; or to another front door, with the
   * client's token.
   *
   * @param hello the client's own parameters of `connect`, without its token
   * @param connectMs how long the other end may take to accept the connection, in milliseconds
   * @returns the connection, the answer to `connect`, and the protocol that the other end speaks
   * @throws FleetError `FLEET_SERVER_UNREACHABLE`, `FLEET_RUNTIME_TOO_OLD`, `FLEET_RUNTIME_TOO_NEW`.
   */
  static async open(
    endpoint: Endpoint,
    hello: Params,
    listener: UpstreamListener,
    signal: AbortSignal,
    connectMs?: number,
  ): Promise<OpenUpstream> {
    const where = `${endpoint.address}:${endpoint.port}`;
    const socket = connect({ host: endpoint.address, port: endpoint.port });
    const upstream = new Upstream(socket, listener);
    const onAbort = () => upstream.destroy();
    const impatient = connectMs === undefined ? undefined : setTimeout(onAbort, connectMs);
    socket.once("connect", () => clearTimeout(impatient));
    signal.addEventListener("abort", onAbort, { once: true });
    if (signal.aborted) onAbort();
    try {
      const greeting = (await upstream.request("connect", { ...hello, token: endpoint.token })) as Params;
      return { upstream, greeting, protocol: serverProtocol(where, greeting.protocolVersion) };
    } catch (cause) {
      upstream.destroy();
      if (cause instanceof FleetError && cause.code !== "FLEET_SERVER_LOST") throw cause;
      throw new FleetError(
        "FLEET_SERVER_UNREACHABLE",
        `The server at ${where} cannot be reached, or takes no more connections.`,
        {
          cause,
        },
      );
    } finally {
      clearTimeout(impatient);
      signal.removeEventListener("abort", onAbort);
    }
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** @returns false when the server reads more slowly than data is sent. The caller should then wait for `onDrain`. */
  send(frame: Buffer): boolean {
    return this.#closed || this.#socket.write(frame);
  }

  /**
   * Makes a request of the front door itself.
   *
   * @param onResult called with the result before the next frame is handled
   * @param signal gives up the wait; a later answer is dropped
   * @throws {@link RpcError}, FleetError `FLEET_SERVER_LOST`, the signal's reason.
   */
  async request(
    method: string,
    params: Params,
    onResult?: (result: unknown) => void,
    signal?: AbortSignal,
  ): Promise<unknown> {
    if (this.#closed) throw lost();
    signal?.throwIfAborted();
    const id = `${this.#prefix}${this.#sequence++}`;
    const answer = new Promise<unknown>((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject, onResult });
    });
    this.#socket.write(encodeMessage({ id, method, params }));
    if (signal === undefined) return await answer;
    try {
      return await abortable(answer, signal);
    } finally {
      this.#waiting.delete(id);
    }
  }

  /**
   * Makes a request of the front door itself that holds up other requests. When many requests about one session are
   * under way, the runtime may never answer one of them (seen with 1.0.85). The time limit keeps the requests that wait
   * from hanging, too.
   *
   * @throws as `request`, and FleetError `FLEET_SERVER_UNREACHABLE` when no answer comes in time.
   */
  async ask(method: string, params: Params): Promise<unknown> {
    using limit = deadline(ASK_MS);
    try {
      return await this.request(method, params, undefined, limit.signal);
    } catch (error) {
      throw isTimeout(error) ? unanswered(method, error) : error;
    }
  }

  pause(): void {
    this.#socket.pause();
  }

  resume(): void {
    this.#socket.resume();
  }

  destroy(): void {
    this.#socket.destroy();
  }

  #receive(chunk: Buffer): void {
    // An error must end only this connection, because the same process serves all the others.
    try {
      const frames = this.#splitter.push(chunk);
      if (frames.length > 0) this.#takeAll(frames);
    } catch (error) {
      this.#socket.destroy();
      this.#listener.onFault(error);
    }
  }

  #takeAll(frames: readonly Frame[]): void {
    this.#listener.onBatch("begin");
    try {
      for (const frame of frames) this.#take(frame);
    } finally {
      this.#listener.onBatch("end");
    }
  }

  #take(frame: Frame): void {
    const message = readServerFrame(frame.body);
    if (message === null) return;
    const waiting = message.kind === "response" ? this.#waiting.get(message.id) : undefined;
    if (waiting === undefined || message.kind !== "response") {
      this.#listener.onFrame(message, frame);
      return;
    }
    const { result, error } = parse(frame.body) as {
      result?: unknown;
      error?: { message?: string; code?: number; data?: unknown };
    };
    // Remove the entry only after this callback. If the callback throws, the connection is closed, and `#end` rejects
    // every request that still has an entry.
    if (error === undefined) waiting.onResult?.(result);
    this.#waiting.delete(message.id);
    if (error === undefined) waiting.resolve(result);
    else waiting.reject(new RpcError(error.message ?? "unknown error", error.code ?? 0, error.data));
  }

  #end(): void {
    this.#closed = true;
    for (const { reject } of this.#waiting.values()) reject(lost());
    this.#waiting.clear();
    this.#listener.onClosed();
  }
}

function lost(): FleetError {
  return new FleetError("FLEET_SERVER_LOST", "The server closed the connection.");
}

function unanswered(method: string, cause: unknown): FleetError {
  return new FleetError(
    "FLEET_SERVER_UNREACHABLE",
    `The server did not answer ${quote(method)} within ${ASK_MS / 1000} s.`,
    { cause, suggestions: ["Try again in a moment.", "copilotfleet ps"] },
  );
}
