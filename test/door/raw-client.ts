import { connect, type Socket } from "node:net";
import { type ConnectionOptions, connect as connectTls } from "node:tls";
import { onTestFinished } from "vitest";
import { eventually } from "../fixtures/eventually.js";
import { MessageReader } from "../fixtures/sessions/message-reader.js";

export interface RawMessage {
  id?: string | number | null;
  method?: string;
  params?: Record<string, unknown>;
  result?: unknown;
  error?: { code: number; message: string; data?: { code?: string; retryable?: boolean } };
}

/** A client that sends exactly what the test gives it, including messages that no SDK would send. */
export class RawClient {
  readonly received: RawMessage[] = [];
  readonly socket: Socket;
  closed = false;
  #sequence = 0;

  private constructor(socket: Socket) {
    this.socket = socket;
    const decoder = new MessageReader();
    socket.on("data", (chunk) => void this.received.push(...(decoder.push(chunk) as RawMessage[])));
    socket.on("error", () => undefined);
    socket.on("close", () => {
      this.closed = true;
    });
  }

  /** @param lasting whether the connection outlives the running test; the caller must then close it */
  static async open(url: string, lasting = false, localAddress?: string): Promise<RawClient> {
    const [, host = "", port = ""] = /^\[?(.*?)\]?:(\d+)$/.exec(url) ?? [];
    const from = localAddress === undefined ? {} : { localAddress };
    const client = new RawClient(connect({ host, port: Number(port), noDelay: true, ...from }));
    if (!lasting) onTestFinished(() => void client.socket.destroy());
    await new Promise<void>((resolve, reject) => {
      client.socket.once("connect", resolve);
      client.socket.once("error", reject);
    });
    return client;
  }

  /** Connects to a front door with TLS. Rejects if the handshake fails. */
  static async openTls(url: string, options: ConnectionOptions, lasting = false): Promise<RawClient> {
    const [host = "", port = ""] = url.split(":");
    const client = new RawClient(connectTls({ host, port: Number(port), ...options }));
    if (!lasting) onTestFinished(() => void client.socket.destroy());
    await new Promise<void>((resolve, reject) => {
      client.socket.once("secureConnect", resolve);
      client.socket.once("error", reject);
    });
    return client;
  }

  /** Connects and authenticates. */
  static async as(url: string, token: string, lasting = false): Promise<RawClient> {
    return await (await RawClient.open(url, lasting)).signedOn(token);
  }

  /** Authenticates on a new connection. */
  async signedOn(token: string): Promise<this> {
    const answer = await this.request("connect", { token, supportedTaskKinds: [] });
    if (answer.error !== undefined) throw new Error(answer.error.message);
    return this;
  }

  bytes(text: string | Buffer): void {
    this.socket.write(text);
  }

  /** Sends one frame with exactly this text. */
  frame(text: string | Buffer): void {
    const body = Buffer.from(text);
    this.bytes(Buffer.concat([Buffer.from(`Content-Length: ${body.length}\r\n\r\n`), body]));
  }

  send(message: object): void {
    this.frame(JSON.stringify({ jsonrpc: "2.0", ...message }));
  }

  async request(method: string, params: object = {}, withinMs?: number): Promise<RawMessage> {
    const id = `raw-${this.#sequence++}`;
    this.send({ id, method, params });
    return await this.answerTo(id, method, withinMs);
  }

  /** Sends a request that has to succeed. Throws if the answer is an error. */
  async requestOk(method: string, params: object = {}): Promise<RawMessage> {
    return succeeded(method, await this.request(method, params));
  }

  async answerTo(id: string | number | null, what = String(id), withinMs?: number): Promise<RawMessage> {
    const look = () => {
      const answer = this.received.find((message) => message.id === id && message.method === undefined);
      if (answer === undefined && this.closed)
        throw new Error(`the connection was closed before the answer to ${what}`);
      return answer;
    };
    return await eventually(`the answer to ${what}`, look, withinMs);
  }

  async end(): Promise<void> {
    await eventually("the end of the connection", () => this.closed);
  }

  /** The types of a session's events, in order. */
  events(sessionId: string): string[] {
    return this.#events(sessionId).map(({ type }) => type);
  }

  #events(sessionId: string) {
    return this.received.flatMap(({ method, params }) =>
      method === "session.event" && params?.sessionId === sessionId
        ? [params.event as { type: string; data?: { content?: string } }]
        : [],
    );
  }

  /** Sends a prompt, and waits for the end of its turn, unless the prompt is refused. */
  async turn(sessionId: string, prompt: string): Promise<RawMessage> {
    const before = this.#events(sessionId).length;
    const answer = await this.request("session.send", { sessionId, prompt });
    if (answer.error !== undefined) return answer;
    // Count only an idle event that follows our prompt. An earlier one belongs to another turn.
    await eventually("the end of the turn", () => {
      const since = this.#events(sessionId).slice(before);
      const begun = since.findIndex(({ type, data }) => type === "user.message" && data?.content === prompt);
      return begun !== -1 && since.slice(begun).some(({ type }) => type === "session.idle");
    });
    return answer;
  }

  /** Sends a prompt that has to succeed, and waits for the end of its turn. Throws if the answer is an error. */
  async turnOk(sessionId: string, prompt: string): Promise<RawMessage> {
    return succeeded("session.send", await this.turn(sessionId, prompt));
  }
}

function succeeded(method: string, answer: RawMessage): RawMessage {
  if (answer.error !== undefined) throw new Error(`${method}: ${answer.error.message}`);
  return answer;
}
