import { connect, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import { encodeMessage, FrameSplitter } from "../../src/runtime/wire/frames.js";

interface Message {
  id?: number;
  error?: unknown;
  params?: { sessionId?: string; event?: { type?: string } };
}

interface Waiting {
  resolve(): void;
  reject(error: Error): void;
}

export interface RawClientOptions {
  /** The authority of the server's certificate. Without it, the connection has no TLS. */
  ca?: string;
  /**
   * Whether the client writes header and body separately and leaves Nagle's algorithm on, like the SDK. Otherwise, it
   * writes each message at once, with TCP_NODELAY.
   */
  nagle?: boolean;
}

/** A client that does as little work as possible, so that the benchmark measures the other parts. */
export class RawClient {
  /** The number of received pieces of answers. */
  deltas = 0;
  onDelta: (() => void) | undefined;
  readonly #socket: Socket;
  readonly #nagle: boolean;
  readonly #waiting = new Map<string | number, Waiting>();
  #sequence = 0;

  private constructor(socket: Socket, nagle: boolean) {
    this.#socket = socket.setNoDelay(!nagle);
    this.#nagle = nagle;
    const splitter = new FrameSplitter(256 * 1024 * 1024);
    socket.on("data", (chunk) => {
      for (const { body } of splitter.push(chunk)) this.#take(JSON.parse(body.toString()) as Message);
    });
    socket.on("error", () => undefined); // `close` follows
    socket.on("close", () => {
      for (const { reject } of this.#waiting.values()) reject(new Error("the connection was closed"));
    });
  }

  static async connect(url: string, token: string, { ca, nagle = false }: RawClientOptions = {}): Promise<RawClient> {
    const [host = "", port = ""] = url.split(":");
    const options = { host, port: Number(port) };
    const socket = ca === undefined ? connect(options) : connectTls({ ...options, ca });
    const client = new RawClient(socket, nagle);
    await client.request("connect", { token, supportedTaskKinds: [] });
    return client;
  }

  #take(message: Message): void {
    const type = message.params?.event?.type;
    if (type === "assistant.message_delta") {
      this.deltas++;
      this.onDelta?.();
    }
    const key = type === "session.idle" ? message.params?.sessionId : message.id;
    if (key === undefined) return;
    const waiting = this.#waiting.get(key);
    this.#waiting.delete(key);
    if (message.error === undefined) waiting?.resolve();
    else waiting?.reject(new Error(JSON.stringify(message.error)));
  }

  async #answer(key: string | number): Promise<void> {
    return await new Promise((resolve, reject) => this.#waiting.set(key, { resolve, reject }));
  }

  async request(method: string, params: object): Promise<void> {
    const id = this.#sequence++;
    const answer = this.#answer(id);
    const message = encodeMessage({ id, method, params });
    const bodyAt = this.#nagle ? message.indexOf("{") : 0;
    if (bodyAt > 0) this.#socket.write(message.subarray(0, bodyAt));
    this.#socket.write(message.subarray(bodyAt));
    await answer;
  }

  async turn(sessionId: string, prompt: string): Promise<void> {
    await Promise.all([this.#answer(sessionId), this.request("session.send", { sessionId, prompt })]);
  }

  end(): void {
    this.#socket.destroy();
  }
}
