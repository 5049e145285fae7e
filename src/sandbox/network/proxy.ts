import { appendFileSync, renameSync, statSync } from "node:fs";
import { createServer, type IncomingMessage, request, type Server, type ServerResponse } from "node:http";
import type { Socket } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import type { ServerRules } from "./addresses.js";
import {
  connectTo,
  EGRESS_RESULTS,
  type EgressResult,
  type Lookup,
  Lookups,
  Refusal,
  readTarget,
  type Target,
} from "./outbound.js";

/**
 * The first line of a connection that asks for the state of the proxy. All other connections begin with a launch id.
 */
export const STATUS_REQUEST = "status";

/** A server with the rules with which it started. */
export interface EgressServer {
  user: string | null;
  server: string;
  rules: ServerRules;
}

export interface RefusedRequest extends Omit<EgressServer, "rules"> {
  result: EgressResult;
  /** Null if the proxy refused before it had read a valid target. */
  target: Target | null;
  detail: string;
}

export interface ProxyOptions {
  /** Returns the server of a launch; null if there is none. */
  serverOf: (launchId: string) => EgressServer | null;
  report: (refused: RefusedRequest) => void;
  /** Only tests set these. */
  lookUp?: Lookup;
  limits?: Partial<typeof LIMITS>;
}

const LIMITS = {
  /** How many connections one server may have. */
  connections: 256,
  /** How many connections of all servers together may be open before they have sent their first line. */
  unnamed: 256,
  /** How long the first line and the header of a request may take. */
  headerMs: 10_000,
  connectMs: 15_000,
  /** How long a connection may be silent. */
  idleMs: 30 * 60_000,
  /**
   * How long the answer to a refused request is delayed, so that a server cannot keep the proxy busy with such
   * requests.
   */
  refusalMs: 100,
  /**
   * How long a connection may stay open after its last answer. `answered`: how many connections of all servers together
   * may be in this state.
   */
  answeredMs: 1_000,
  answered: 256,
};

const LONGEST_FIRST_LINE = 128;
const LONGEST_HEADER = 16 * 1024;

const UNKNOWN_SERVER = new Refusal("refused", 403, "The proxy of the sandbox does not know this server.");

interface Client extends EgressServer {
  lookups: Lookups;
  connections: number;
}

/**
 * The HTTP proxy through which servers with an allow-list reach other hosts. It trusts only the first line of a
 * connection, because the bridge of the server's sandbox writes this line.
 */
export class EgressProxy {
  readonly counts = Object.fromEntries(EGRESS_RESULTS.map((result) => [result, 0])) as Record<EgressResult, number>;
  readonly open = new Set<Socket>();
  readonly #options: ProxyOptions;
  readonly #limits: typeof LIMITS;
  readonly #http: Server;
  readonly #unnamed = new Set<Socket>();
  /** Connections that got an answer but were never assigned to a client. */
  readonly #answered = new Set<Socket>();
  /** The timers that end connections whose header is not complete in time. */
  readonly #deadlines = new WeakMap<Socket, NodeJS.Timeout>();
  /** The servers that have connections or look-ups, by launch id. */
  readonly #clients = new Map<string, Client>();
  readonly #clientOf = new WeakMap<Socket, Client>();

  constructor(options: ProxyOptions) {
    this.#options = options;
    this.#limits = { ...LIMITS, ...options.limits };
    this.#http = createServer({
      maxHeaderSize: LONGEST_HEADER,
      noDelay: true,
    });
    this.#http.setTimeout(this.#limits.idleMs);
    // Allow only one request for each connection, because the deadline covers only the first header.
    this.#http.maxRequestsPerSocket = 1;
    this.#http.on("connect", (message: IncomingMessage, socket: Socket, head: Buffer) => {
      clearTimeout(this.#deadlines.get(socket));
      void this.#tunnel(message, socket, head);
    });
    this.#http.on("request", (message: IncomingMessage, response: ServerResponse) => {
      clearTimeout(this.#deadlines.get(message.socket));
      void this.#serve(message, response);
    });
  }

  /** Serves a new connection. @param status the answer to {@link STATUS_REQUEST} */
  accept(socket: Socket, status: () => object): void {
    this.open.add(socket);
    this.#unnamed.add(socket);
    const timer = setTimeout(() => socket.destroy(), this.#limits.headerMs);
    this.#deadlines.set(socket, timer);
    socket.on("error", () => undefined); // "close" follows
    socket.once("close", () => {
      clearTimeout(timer);
      this.open.delete(socket);
      this.#unnamed.delete(socket);
      this.#answered.delete(socket);
    });
    const [oldest] = this.#unnamed;
    if (this.#unnamed.size > this.#limits.unnamed) oldest?.destroy();
    let received = Buffer.alloc(0);
    const read = (chunk: Buffer) => {
      received = Buffer.concat([received, chunk]);
      const end = received.indexOf("\n");
      if (end === -1 && received.length <= LONGEST_FIRST_LINE) return;
      this.#unnamed.delete(socket);
      socket.off("data", read);
      socket.pause();
      if (end === -1) return void socket.destroy();
      const line = received.toString("latin1", 0, end);
      if (line === STATUS_REQUEST) return this.#end(socket, `${JSON.stringify(status())}\n`);
      socket.unshift(received.subarray(end + 1));
      this.#named(socket, line);
    };
    socket.on("data", read);
  }

  #named(socket: Socket, launchId: string): void {
    const client = this.#clients.get(launchId) ?? this.#newClient(launchId);
    if (client === null) {
      this.counts.refused++;
      this.#end(socket, answer(UNKNOWN_SERVER));
      return;
    }
    if (client.connections >= this.#limits.connections) {
      const problem = `This server has ${client.connections} connections, and may have no more.`;
      this.#end(socket, answer(this.#refuse(client, null, new Refusal("limited", 503, problem))));
      return;
    }
    this.#clients.set(launchId, client);
    this.#clientOf.set(socket, client);
    client.connections++;
    socket.once("close", () => {
      client.connections--;
      this.#forgetIdle(launchId);
    });
    this.#http.emit("connection", socket);
    socket.resume();
  }

  #newClient(launchId: string): Client | null {
    const server = this.#options.serverOf(launchId);
    if (server === null) return null;
    return { ...server, lookups: new Lookups(this.#options.lookUp, () => this.#forgetIdle(launchId)), connections: 0 };
  }

  #forgetIdle(launchId: string): void {
    const client = this.#clients.get(launchId);
    if (client?.connections === 0 && client.lookups.isIdle) this.#clients.delete(launchId);
  }

  /** Sends a last text, and then closes the connection. */
  #end(socket: Socket, text: string): void {
    this.#answered.add(socket);
    const [oldest] = this.#answered;
    if (this.#answered.size > this.#limits.answered) oldest?.destroy();
    endWith(socket, text, this.#limits.answeredMs);
  }

  /** Serves CONNECT. */
  async #tunnel({ url = "" }: IncomingMessage, socket: Socket, head: Buffer): Promise<void> {
    const upstream = await this.#connect(socket, () => readTarget(url));
    if (upstream instanceof Refusal) {
      endWith(socket, answer(upstream), this.#limits.answeredMs);
      return;
    }
    for (const side of [socket, upstream]) side.setTimeout(this.#limits.idleMs, () => side.destroy());
    socket.write("HTTP/1.1 200 Connection established\r\n\r\n");
    upstream.write(head);
    for (const [from, to] of [
      [socket, upstream],
      [upstream, socket],
    ] as const) {
      // If `from` ended properly, `to` must still get everything that `from` sent. Otherwise, cut both at once.
      from.once("close", () => (from.readableEnded ? to.destroySoon() : to.destroy()));
      from.pipe(to);
    }
  }

  /** Serves a request without encryption, such as `GET http://a.example/`. */
  async #serve(message: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = plainUrl(message);
    const upstream = await this.#connect(message.socket, () => readTarget(`${url?.hostname ?? ""}:${url?.port || 80}`));
    if (upstream instanceof Refusal || url === null) {
      const { status, message: text } = upstream as Refusal;
      response.writeHead(status, { "content-type": "text/plain", connection: "close" }).end(`${text}\n`);
      return;
    }
    upstream.setTimeout(this.#limits.idleMs, () => upstream.destroy());
    forward(message, response, url, upstream);
  }

  /**
   * Opens the connection to the target of a request. If that fails, reports the refusal and returns it after a short
   * delay.
   */
  async #connect(socket: Socket, read: () => Target): Promise<Socket | Refusal> {
    const client = this.#clientOf.get(socket);
    if (client === undefined) return UNKNOWN_SERVER;
    const ending = new AbortController();
    const abort = (why: string) => ending.abort(new Refusal("failed", 504, why));
    const gone = () => abort("The client ended the connection.");
    const timer = setTimeout(() => abort("The host did not answer in time."), this.#limits.connectMs);
    socket.once("close", gone);
    let target: Target | null = null;
    try {
      target = read();
      const upstream = await connectTo(target, client.rules, client.lookups, ending.signal);
      this.counts.allowed++;
      return upstream;
    } catch (error) {
      const refusal = error instanceof Refusal ? error : new Refusal("failed", 502, "The proxy failed.", String(error));
      this.#refuse(client, target, refusal);
      if (!socket.destroyed) await delay(this.#limits.refusalMs);
      return refusal;
    } finally {
      clearTimeout(timer);
      socket.off("close", gone);
    }
  }

  #refuse({ user, server }: Client, target: Target | null, refusal: Refusal): Refusal {
    this.counts[refusal.result]++;
    this.#options.report({ user, server, target, result: refusal.result, detail: refusal.detail });
    return refusal;
  }
}

function answer({ status, message }: Refusal): string {
  const text = `${message}\n`;
  const reason = status === 403 ? "Forbidden by sandbox.allow" : "Not connected";
  const header = `HTTP/1.1 ${status} ${reason}\r\nContent-Type: text/plain\r\nContent-Length: ${Buffer.byteLength(text)}`;
  return `${header}\r\nConnection: close\r\n\r\n${text}`;
}

function endWith(socket: Socket, text: string, afterMs: number): void {
  socket.end(text);
  // Read and discard further input, because otherwise the connection could end before the client has the answer.
  socket.resume();
  const timer = setTimeout(() => socket.destroy(), afterMs).unref();
  socket.once("close", () => clearTimeout(timer));
}

/** Headers that concern only one connection, so a proxy must not forward them (RFC 9110, 7.6.1). */
const OF_CONNECTION = new Set(
  "connection expect keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding upgrade".split(
    " ",
  ),
);

/**
 * The `http://` URL of a request that a client sent to the proxy without encryption. Null for any other request, and if
 * the URL contains credentials.
 */
function plainUrl({ url = "" }: IncomingMessage): URL | null {
  const parsed = /^http:\/\//i.test(url) && URL.canParse(url) ? new URL(url) : null;
  return parsed === null || parsed.username !== "" || parsed.password !== "" ? null : parsed;
}

/**
 * Sends the client's request over the open connection `upstream`, and passes the answer back. Answers 502 if that
 * fails.
 */
function forward(message: IncomingMessage, response: ServerResponse, url: URL, upstream: Socket): void {
  const { method, headers } = message;
  const fail = () => {
    upstream.destroy();
    if (response.headersSent) response.destroy();
    else response.writeHead(502, { connection: "close" }).end();
  };
  response.on("close", () => upstream.destroy());
  try {
    const isChunked = headers["transfer-encoding"] !== undefined;
    const length = headers["content-length"];
    // State the length of the body here, because the client could take it out by naming it in `Connection`.
    const framing = isChunked ? { "transfer-encoding": "chunked" } : length && { "content-length": length };
    const sent = request({
      method,
      path: `${url.pathname}${url.search}`,
      headers: { ...passedOn(headers), host: url.host, ...framing },
      createConnection: () => upstream,
    });
    sent.on("error", fail);
    sent.on("close", () => {
      if (!response.headersSent) fail();
    });
    sent.on("response", (answered) => {
      try {
        response.writeHead(answered.statusCode ?? 502, passedOn(answered.headers));
      } catch {
        fail(); // the answer has a header that Node.js refuses to send
        return;
      }
      answered.on("error", fail);
      answered.pipe(response);
    });
    message.pipe(sent);
  } catch {
    fail(); // the request has a header that Node.js refuses to send
  }
}

/** The headers to pass on: all except those of the connection, and those that the header `Connection` names. */
function passedOn(headers: IncomingMessage["headers"]): IncomingMessage["headers"] {
  const named = new Set((headers.connection ?? "").split(",").map((name) => name.trim().toLowerCase()));
  return Object.fromEntries(Object.entries(headers).filter(([name]) => !OF_CONNECTION.has(name) && !named.has(name)));
}

const MINUTE_MS = 60_000;

/**
 * The log of refused requests, with one JSON object in each line. A server can cause any number of refusals. So the log
 * gets a limited number of lines for each server and minute, and has at most two files of limited size.
 */
export class RefusalLog {
  readonly #path: string;
  readonly #limits: { perMinute: number; bytes: number };
  #minute = 0;
  /** How many requests of each server were refused in this minute. */
  #refused = new Map<string, number>();

  constructor(path: string, limits = { perMinute: 60, bytes: 4 * 1024 * 1024 }) {
    this.#path = path;
    this.#limits = limits;
  }

  write({ user, server, target, result, detail }: RefusedRequest, nowMs = Date.now()): void {
    this.#beginMinute(Math.floor(nowMs / MINUTE_MS), nowMs);
    const count = (this.#refused.get(server) ?? 0) + 1;
    this.#refused.set(server, count);
    if (count > this.#limits.perMinute) return;
    this.#append({ time: new Date(nowMs).toISOString(), result, user, server, ...target, detail });
  }

  /**
   * When a new minute begins, logs how many refusals of each server were left out of the log in the last one, and
   * resets the counts.
   */
  #beginMinute(minute: number, nowMs: number): void {
    if (minute === this.#minute) return;
    const left = [...this.#refused].filter(([, count]) => count > this.#limits.perMinute);
    this.#minute = minute;
    this.#refused = new Map();
    for (const [server, count] of left) {
      const detail = `${count - this.#limits.perMinute} more requests of a minute were refused`;
      this.#append({ time: new Date(nowMs).toISOString(), server, detail });
    }
  }

  #append(entry: object): void {
    try {
      const bytes = statSync(this.#path, { throwIfNoEntry: false })?.size ?? 0;
      if (bytes > this.#limits.bytes) renameSync(this.#path, `${this.#path}.1`);
      appendFileSync(this.#path, `${JSON.stringify(entry)}\n`, { mode: 0o600 });
    } catch {
      // A full disk must not stop the proxy. The metrics still count the request.
    }
  }
}
