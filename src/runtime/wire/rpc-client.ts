import { randomBytes } from "node:crypto";
import { connect, type Socket } from "node:net";
import { abortable, type Clock, deadline, deadlineOn, isTimeout, systemClock } from "../../base/clock.js";
import { FleetError, quote } from "../../base/errors.js";
import { acknowledgePromptly, encodeMessage, type Frame, FrameSplitter } from "./frames.js";
import { parse, type RpcId, readServerFrame, type ServerMessage } from "./scan.js";
import type { PeerTls } from "./secure.js";

export interface Endpoint {
  address: string;
  port: number;
  token: string;
  /** Whether the other end sends without Nagle's delay. */
  noDelay?: boolean;
  /** Set only for front doors with TLS. If it is absent, the connection is plain TCP. */
  tls?: PeerTls | undefined;
}

/** Far longer than any frame that a server sends, and far shorter than a frame that would exhaust the memory. */
const MAX_FRAME_BYTES = 256 * 1024 * 1024;

const KEEP_ALIVE_MS = 30_000;

/** How long a server may take to answer a request that holds up other requests, in milliseconds. */
const ASK_MS = 30_000;

/** Receives everything from a connection except the answers to our own requests. */
export interface RpcListener {
  /**
   * True while nobody waits for data from this connection. As long as it is true, we save the work of acknowledging
   * each chunk, so later chunks may arrive up to 40 ms late (see `frames.ts`). A shared server sends the lifecycle
   * events of all its sessions to every connection, and most clients are idle.
   */
  readonly isIdle: boolean;
  onFrame(message: ServerMessage, frame: Frame): void;
  /** Called when the server accepts more data again after `send` returned false. */
  onDrain(): void;
  /** Called when this side closes the connection because of a `ProtocolError` or a bug of ours. `onClosed` follows. */
  onFault(error: unknown): void;
  onClosed(): void;
}

export interface RpcDial {
  /** The parameters of `connect`, except the token. */
  hello: object;
  /** Without a listener, everything but the answers to requests is ignored. */
  listener?: RpcListener;
  /** How long the other end may take to accept the connection, in milliseconds. */
  connectMs?: number | undefined;
  /** The clock for the time limit of {@link RpcClient.ask}. Default: the system's clock. */
  clock?: Clock;
}

interface Waiting {
  resolve(result: unknown): void;
  onResult: ((result: unknown) => void) | undefined;
  reject(error: Error): void;
}

/** One connection to a server or a front door, for our own requests and for frames that we only forward. */
export class RpcClient {
  readonly ended: Promise<void>;
  readonly #socket: Socket;
  readonly #splitter = new FrameSplitter(MAX_FRAME_BYTES);
  readonly #listener: RpcListener | undefined;
  readonly #clock: Clock;
  /**
   * The prefix of the ids of our own requests. It is random, so that a client of the front door cannot guess such an id
   * and use it.
   */
  readonly #prefix = `fleet-${randomBytes(9).toString("base64url")}-`;
  readonly #waiting = new Map<RpcId, Waiting>();
  #sequence = 0;
  #closed = false;
  /** Why the connection ended. Undefined if the other end closed it. */
  #reason: unknown;

  private constructor(socket: Socket, noDelay: boolean, listener: RpcListener | undefined, clock: Clock) {
    this.#socket = socket;
    this.#listener = listener;
    this.#clock = clock;
    socket.setNoDelay(true);
    if (!noDelay) acknowledgePromptly(socket, () => this.#waiting.size > 0 || listener?.isIdle !== true);
    socket.setKeepAlive(true, KEEP_ALIVE_MS);
    socket.on("data", (chunk) => this.#receive(chunk));
    socket.on("drain", () => listener?.onDrain());
    // `close` follows and reports the end.
    socket.on("error", (error) => {
      this.#reason ??= error;
    });
    this.ended = new Promise((resolve) => {
      socket.once("close", () => {
        this.#end();
        resolve();
      });
    });
  }

  /**
   * Connects, presents the token, and resolves with the answer to `connect`. The signal ends only the attempt to
   * connect.
   */
  static async dial(
    endpoint: Endpoint,
    { hello, listener, connectMs, clock = systemClock }: RpcDial,
    signal: AbortSignal,
  ): Promise<{ client: RpcClient; greeting: Record<string, unknown> }> {
    const { address, port, token, tls, noDelay = false } = endpoint;
    const socket =
      tls === undefined ? connect({ host: address, port }) : await secured(endpoint, tls, connectMs, signal);
    const client = new RpcClient(socket, noDelay, listener, clock);
    const onAbort = () => client.destroy(signal.reason);
    const impatient =
      connectMs === undefined || tls !== undefined ? undefined : setTimeout(() => client.destroy(), connectMs);
    socket.once("connect", () => clearTimeout(impatient));
    signal.addEventListener("abort", onAbort, { once: true });
    if (signal.aborted) onAbort();
    try {
      const greeting = (await client.request("connect", { ...hello, token })) ?? {};
      return { client, greeting: greeting as Record<string, unknown> };
    } catch (error) {
      client.destroy();
      throw error;
    } finally {
      clearTimeout(impatient);
      signal.removeEventListener("abort", onAbort);
    }
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** The local port, by which the connection can be found in the kernel's table of sockets. */
  get localPort(): number | undefined {
    return this.#socket.localPort;
  }

  /** @returns false if the server reads more slowly than we send. The caller should then wait for `onDrain`. */
  send(frame: Buffer): boolean {
    return this.#closed || this.#socket.write(frame);
  }

  /**
   * Makes one of our own requests. Rejects with {@link RpcError}, or with `FLEET_SERVER_LOST` if the connection ends.
   *
   * @param onResult called with the result before the next frame is handled
   * @param signal ends the wait. A later answer is dropped, and the connection stays open.
   */
  async request(
    method: string,
    params: unknown,
    onResult?: (result: unknown) => void,
    signal?: AbortSignal,
  ): Promise<unknown> {
    if (this.#closed) throw lost(this.#reason);
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
   * Like {@link request}, but rejects with `FLEET_SERVER_UNREACHABLE` after 30 s, because other requests wait behind
   * this one. If a client sends many requests about a session at once, the runtime may never answer one of them (seen
   * with 1.0.85).
   */
  async ask(method: string, params: unknown): Promise<unknown> {
    using limit = deadlineOn(this.#clock, ASK_MS);
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

  destroy(reason?: unknown): void {
    this.#reason ??= reason;
    this.#socket.destroy();
  }

  #receive(chunk: Buffer): void {
    // An error must end only this connection, and not the process.
    try {
      for (const frame of this.#splitter.push(chunk)) this.#take(frame);
    } catch (error) {
      this.destroy(error);
      this.#listener?.onFault(error);
    }
  }

  #take(frame: Frame): void {
    const message = readServerFrame(frame.body);
    if (message === null) return;
    const waiting = message.kind === "response" ? this.#waiting.get(message.id) : undefined;
    if (waiting === undefined || message.kind !== "response") {
      this.#listener?.onFrame(message, frame);
      return;
    }
    const { result, error } = parse(frame.body) as {
      result?: unknown;
      error?: { message?: string; code?: number; data?: unknown };
    };
    // If the callback throws, `#receive` closes the connection, and `#end` rejects this request.
    if (error === undefined) waiting.onResult?.(result);
    this.#waiting.delete(message.id);
    if (error === undefined) waiting.resolve(result);
    else waiting.reject(new RpcError(error.message ?? "unknown error", error.code ?? 0, error.data));
  }

  #end(): void {
    this.#closed = true;
    for (const { reject } of this.#waiting.values()) reject(lost(this.#reason));
    this.#waiting.clear();
    this.#listener?.onClosed();
  }
}

/** Connects with TLS. @throws FleetError `FLEET_SERVER_LOST` when this fails, with the reason as its cause. */
async function secured(endpoint: Endpoint, tls: PeerTls, connectMs: number | undefined, signal: AbortSignal) {
  using limit = deadline(connectMs, signal);
  try {
    const { connectSecurely } = await import("./secure.js");
    return await connectSecurely(endpoint, tls, limit.signal);
  } catch (error) {
    throw lost(error);
  }
}

/** The server understood the request and answered with an error. */
export class RpcError extends Error {
  override readonly name = "RpcError";
  readonly rpcCode: number;
  /** More about the error (`error.data`). A front door sends `{code, retryable}`. */
  readonly data: unknown;

  constructor(message: string, rpcCode: number, data?: unknown) {
    super(message);
    this.rpcCode = rpcCode;
    this.data = data;
  }

  /** The code of the `FleetError` with which a front door refused the request. Undefined for any other error. */
  get fleetCode(): string | undefined {
    const { data } = this;
    const code = typeof data === "object" && data !== null && "code" in data ? data.code : undefined;
    return typeof code === "string" ? code : undefined;
  }
}

function lost(reason: unknown): FleetError {
  return new FleetError("FLEET_SERVER_LOST", "The server closed the connection.", { cause: reason });
}

function unanswered(method: string, cause: unknown): FleetError {
  return new FleetError(
    "FLEET_SERVER_UNREACHABLE",
    `The server did not answer ${quote(method)} within ${ASK_MS / 1000} s.`,
    { cause, suggestions: ["Try again in a moment.", "copilotfleet ps"] },
  );
}
