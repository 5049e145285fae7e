import { connect, type Socket } from "node:net";
import { FleetError } from "../../errors.js";
import { abortable } from "../deadline.js";
import { runtimeMismatch, SUPPORTED_VERSIONS } from "../launch/protocol.js";
import { acknowledgePromptly } from "./acknowledge.js";
import { encodeFrame, FrameDecoder } from "./frames.js";

export interface Endpoint {
  address: string;
  port: number;
  token: string;
}

interface Waiting {
  resolve(result: unknown): void;
  reject(error: Error): void;
}

/**
 * A bare authenticated connection to one server, for the few calls that do not need the SDK. A probe must cost a
 * millisecond, not the import of a client library. Every call ends when the connection ends.
 */
export class RawConnection implements AsyncDisposable {
  /** The server's version, from its answer to the token. */
  readonly version: string;
  /** The version of the protocol that the server speaks. */
  readonly protocolVersion: number;
  /** Resolves when the connection is closed, by either side. */
  readonly closed: Promise<void>;
  /** The local port, by which the connection can be found in the kernel's table. */
  readonly localPort: number | undefined;
  readonly #socket: Socket;
  readonly #send: (method: string, params: unknown) => Promise<unknown>;
  readonly #close: () => void;

  private constructor(
    socket: Socket,
    { version, protocolVersion }: Pick<RawConnection, "version" | "protocolVersion">,
    send: (method: string, params: unknown) => Promise<unknown>,
    close: () => void,
  ) {
    this.#socket = socket;
    this.closed = new Promise((resolve) => {
      if (socket.destroyed) resolve();
      else socket.once("close", () => resolve());
    });
    this.localPort = socket.localPort;
    this.version = version;
    this.protocolVersion = protocolVersion;
    this.#send = send;
    this.#close = close;
  }

  /**
   * Connects and authenticates. This sends the token, so the caller must have checked that the listener is the server. The
   * connection ends when the signal aborts; with `lasting`, the signal ends only the opening.
   *
   * @throws FleetError `FLEET_SERVER_UNREACHABLE` (refused, wrong token, no answer in time), `FLEET_RUNTIME_TOO_OLD` or
   * `FLEET_RUNTIME_TOO_NEW` (another protocol version).
   */
  static async open(endpoint: Endpoint, signal: AbortSignal, { lasting = false } = {}): Promise<RawConnection> {
    const where = `${endpoint.address}:${endpoint.port}`;
    const waiting = new Map<number, Waiting>();
    const socket = connect({ host: endpoint.address, port: endpoint.port });
    acknowledgePromptly(socket);
    const end = (error: FleetError) => {
      for (const { reject } of waiting.values()) reject(error);
      waiting.clear();
      socket.destroy();
    };
    const fail = (reason: string, cause?: unknown) =>
      end(new FleetError("FLEET_SERVER_UNREACHABLE", `The server at ${where} ${reason}.`, { cause }));
    const closed = () =>
      new FleetError("FLEET_SERVER_UNREACHABLE", `The connection to the server at ${where} is closed.`);
    const decoder = new FrameDecoder();
    socket.on("data", (chunk) => {
      try {
        for (const message of decoder.push(chunk)) settle(waiting, message);
      } catch (cause) {
        fail("does not speak the Copilot protocol", cause);
      }
    });
    socket.on("error", (cause) => fail(`cannot be reached (${cause.message})`, cause));
    socket.on("close", () => fail("closed the connection"));
    const onAbort = () => fail("did not answer in time", signal.reason);
    if (signal.aborted) onAbort();
    signal.addEventListener("abort", onAbort, { once: true });
    socket.once("close", () => signal.removeEventListener("abort", onAbort));

    let nextId = 1;
    const send = (method: string, params: unknown): Promise<unknown> =>
      new Promise((resolve, reject) => {
        if (socket.destroyed) {
          reject(closed());
          return;
        }
        const id = nextId++;
        waiting.set(id, { resolve, reject });
        socket.write(encodeFrame({ jsonrpc: "2.0", id, method, params }));
      });

    const hello = await send("connect", { token: endpoint.token, supportedTaskKinds: [] }).catch((cause: unknown) => {
      socket.destroy();
      if (cause instanceof RpcError && cause.rpcCode === METHOD_NOT_FOUND)
        throw runtimeMismatch(where, undefined, cause);
      throw cause instanceof RpcError
        ? new FleetError(
            "FLEET_SERVER_UNREACHABLE",
            `The server at ${where} refused the connection: ${cause.message}.`,
            {
              cause,
            },
          )
        : cause;
    });
    const { protocolVersion, version } = hello as { protocolVersion?: unknown; version?: unknown };
    if (typeof protocolVersion !== "number" || !SUPPORTED_VERSIONS.has(protocolVersion)) {
      socket.destroy();
      throw runtimeMismatch(where, protocolVersion ?? null);
    }
    if (lasting) signal.removeEventListener("abort", onAbort);
    const greeting = { version: typeof version === "string" ? version : "unknown", protocolVersion };
    return new RawConnection(socket, greeting, send, () => end(closed()));
  }

  /**
   * Sends one request. If the signal aborts first, the answer is dropped, and the connection stays open.
   *
   * @throws FleetError `FLEET_SERVER_UNREACHABLE` when the connection ends first; {@link RpcError} when the server answers
   * with an error; the signal's reason.
   */
  async request(method: string, params: unknown, signal?: AbortSignal): Promise<unknown> {
    const answer = this.#send(method, params);
    if (signal === undefined) return await answer;
    answer.catch(() => undefined); // nobody handles it if the signal aborts first
    return await abortable(answer, signal);
  }

  /** Closes at once. Requests without an answer reject with `FLEET_SERVER_UNREACHABLE`. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#socket.destroyed) return;
    this.#socket.end();
    this.#close();
  }
}

const METHOD_NOT_FOUND = -32601;

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

function settle(waiting: Map<number, Waiting>, message: unknown): void {
  if (typeof message !== "object" || message === null || "method" in message) return; // a request or event, not an answer
  const { id, result, error } = message as {
    id?: unknown;
    result?: unknown;
    error?: { message?: string; code?: number; data?: unknown };
  };
  if (typeof id !== "number") return;
  const caller = waiting.get(id);
  waiting.delete(id);
  if (error === undefined) caller?.resolve(result);
  else caller?.reject(new RpcError(error.message ?? "unknown error", error.code ?? 0, error.data));
}
