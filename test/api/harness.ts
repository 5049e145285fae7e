import { once } from "node:events";
import { type IncomingHttpHeaders, type RequestOptions, request } from "node:http";
import { request as secureRequest } from "node:https";
import { connect, type Socket } from "node:net";
import { text } from "node:stream/consumers";
import type { HttpDoor } from "../../src/api/door.js";
import { Fleet } from "../../src/fleet/fleet.js";
import type { FleetOptions } from "../../src/fleet/options.js";
import type { DoorEvent, RequestReport } from "../../src/gateway/state/door/report.js";
import type { Scope } from "../../src/identity/identity.js";
import type { SignOnReport } from "../../src/identity/sign-on.js";
import { TestFleet } from "../fixtures/commands/cli.js";

/** An answer of the API. */
export interface Reply {
  status: number;
  headers: IncomingHttpHeaders;
  text: string;
  /** The body as JSON; null if there is none. */
  // biome-ignore lint/suspicious/noExplicitAny: each test knows the fields of its answer
  json: any;
}

export interface Ask {
  /** Undefined: no token. */
  token?: string | undefined;
  /** An object becomes JSON. */
  body?: unknown;
  headers?: Readonly<Record<string, string>>;
  /** The authority that signed the certificate of the door. */
  ca?: string;
  signal?: AbortSignal;
}

export interface ApiOptions {
  config?: NonNullable<FleetOptions["config"]>;
  env?: NodeJS.ProcessEnv;
}

/** A fleet in a temporary folder with an open HTTP API, on the echo model. */
export class TestApi implements AsyncDisposable {
  private constructor(
    readonly commands: TestFleet,
    readonly fleet: Fleet,
    readonly door: HttpDoor,
    readonly events: DoorEvent[],
    readonly requests: RequestReport[],
    readonly signOns: SignOnReport[],
  ) {}

  static async open({ config = {}, env = {} }: ApiOptions = {}): Promise<TestApi> {
    const commands = new TestFleet(env);
    const fleet = await Fleet.open({ env: commands.env, cwd: commands.folder, config });
    const events: DoorEvent[] = [];
    const requests: RequestReport[] = [];
    const signOns: SignOnReport[] = [];
    const door = await fleet.openHttpDoor({
      listen: "127.0.0.1:0",
      onEvent: (event) => events.push(event),
      onRequest: (report) => requests.push(report),
      onSignOn: (report) => signOns.push(report),
    });
    return new TestApi(commands, fleet, door, events, requests, signOns);
  }

  async token(user: string, scopes: readonly Scope[] = ["use"], sessionId?: string): Promise<string> {
    const bound = sessionId === undefined ? {} : { sessionId };
    return (await this.fleet.tokens.issue(user, { scopes, ...bound })).token;
  }

  /** Makes a request over a connection of its own. The path goes over the wire as it is. */
  async ask(method: string, path: string, options: Ask = {}): Promise<Reply> {
    return await ask(this.door.url, method, path, options);
  }

  /** Makes a request that must succeed. */
  async ok(method: string, path: string, options: Ask = {}): Promise<Reply> {
    const reply = await this.ask(method, path, options);
    if (reply.status >= 300) throw new Error(`${method} ${path}: ${reply.status} ${reply.text}`);
    return reply;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.fleet.close();
    await this.commands.end();
  }
}

/** Connections to a door, as the door sees its ends of them. */
export async function doorEnds({ address }: HttpDoor, count: number): Promise<Socket[]> {
  const connected = async () => {
    const socket = connect(address.port, "127.0.0.1");
    await once(socket, "connect");
    // For the door, the port of the client is the remote one.
    return Object.defineProperty(socket, "remotePort", { value: socket.localPort });
  };
  return await Promise.all(Array.from({ length: count }, connected));
}

export async function ask(url: string, method: string, path: string, options: Ask = {}): Promise<Reply> {
  const { token, body, headers = {}, ca, signal } = options;
  const isRaw = typeof body === "string" || Buffer.isBuffer(body);
  const content = body === undefined ? undefined : isRaw ? body : JSON.stringify(body);
  const { hostname, port, protocol } = new URL(url);
  const how: RequestOptions = {
    hostname: hostname.replace(/^\[|\]$/g, ""),
    port,
    method,
    path,
    agent: false,
    headers: {
      ...(token === undefined ? {} : { Authorization: `Bearer ${token}` }),
      ...(content === undefined
        ? {}
        : { "Content-Type": "application/json", "Content-Length": Buffer.byteLength(content) }),
      ...headers,
    },
    ...(signal === undefined ? {} : { signal }),
  };
  const sent =
    protocol === "https:"
      ? secureRequest({ ...how, servername: "localhost", ...(ca === undefined ? {} : { ca }) })
      : request(how);
  sent.end(content);
  const [response] = await once(sent, "response");
  const received = await text(response);
  const isJson = method !== "HEAD" && /json/.test(response.headers["content-type"] ?? "");
  const json = isJson ? (JSON.parse(received) as unknown) : null;
  return { status: response.statusCode, headers: response.headers, text: received, json };
}
