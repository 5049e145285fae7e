import { once } from "node:events";
import { request } from "node:http";
import { connect, type Socket } from "node:net";
import { createFinalURL, createQuerySerializer, defaultPathSerializer } from "openapi-fetch";
import type { DoorEvent, RequestReport } from "../../src/door/state/report.js";
import { Fleet } from "../../src/fleet/fleet.js";
import type { FleetOptions } from "../../src/hosts/options.js";
import type { HttpDoor } from "../../src/http/door.js";
import type { Scope } from "../../src/identity/identity.js";
import type { SignOnReport } from "../../src/identity/sign-on.js";
import { type ApiClient, apiClient } from "../fixtures/api/client.js";
import { checkAnswer, operationAt } from "../fixtures/api/document.js";
import { type Reply, send } from "../fixtures/api/send.js";
import { TestFleet } from "../fixtures/commands/cli.js";
import { TOOLS_ANYWHERE } from "../fixtures/programs/sandbox.js";

export { eventsIn, type Received } from "../fixtures/api/received.js";
export type { Reply };

export interface Ask {
  /** Undefined: no token. */
  token?: string | undefined;
  /** An object is sent as JSON. */
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
    const commands = new TestFleet({ ...TOOLS_ANYWHERE, ...env });
    const fleet = await Fleet.open({ env: commands.env, cwd: commands.folder, config });
    const events: DoorEvent[] = [];
    const requests: RequestReport[] = [];
    const signOns: SignOnReport[] = [];
    const door = await fleet.doors.openHttp({
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

  /** The client that is generated from the OpenAPI document. */
  client(token?: string): ApiClient {
    return apiClient(this.door.url, { token, onReply: checkAnswer });
  }

  /** Makes a request on a new connection. The path is sent unchanged. */
  async ask(method: string, path: string, options: Ask = {}): Promise<Reply> {
    return await ask(this.door.url, method, path, options);
  }

  /** Makes a request. Throws if the answer is not a success. */
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

/** Connects `count` clients to a door. Returns their sockets, with the `remotePort` of the door's sockets. */
export async function doorEnds({ address }: HttpDoor, count: number): Promise<Socket[]> {
  const connected = async () => {
    const socket = connect(address.port, "127.0.0.1");
    await once(socket, "connect");
    // The port that is local for the client is remote for the door.
    return Object.defineProperty(socket, "remotePort", { value: socket.localPort });
  };
  return await Promise.all(Array.from({ length: count }, connected));
}

/** The ids of the operations in the OpenAPI document that the generated client has called successfully. */
export const used = new Set<string>();

/**
 * Makes a request with the generated client if the document describes such a request, and otherwise sends it unchanged.
 * Checks the answer against the document.
 */
export async function ask(url: string, method: string, path: string, options: Ask = {}): Promise<Reply> {
  const reply = (await askThroughClient(url, method, path, options)) ?? (await askAsGiven(url, method, path, options));
  checkAnswer(method, path, reply);
  return reply;
}

async function askAsGiven(url: string, method: string, path: string, { token, body, ...how }: Ask): Promise<Reply> {
  const isRaw = typeof body === "string" || Buffer.isBuffer(body);
  const content = body === undefined ? undefined : isRaw ? body : JSON.stringify(body);
  const headers = {
    ...(token === undefined ? {} : { Authorization: `Bearer ${token}` }),
    ...(content === undefined ? {} : { "Content-Type": "application/json" }),
    ...how.headers,
  };
  return await send(url, method, path, { ...how, body: content, headers });
}

/** @returns null if the generated client cannot make this request */
async function askThroughClient(url: string, method: string, path: string, options: Ask): Promise<Reply | null> {
  const { token, body, headers = {}, ca, signal } = options;
  const found = operationAt(method, path);
  const isObject = typeof body === "object" && body !== null && !Buffer.isBuffer(body);
  if (found === null || (body !== undefined && (method === "GET" || !isObject))) return null;
  const [, search = ""] = path.split("?");
  const query = Object.fromEntries(new URLSearchParams(search));
  if (addressOf(url, found, query) !== path) return null;
  let reply: Reply | null = null;
  const client = apiClient(url, {
    token,
    ca,
    signal,
    onReply: (_, __, received) => {
      reply = received;
      if (received.status < 400) used.add(found.operation.operationId);
    },
  });
  // The types of a request whose path is only known at run time cannot be checked.
  const given = { params: { path: found.params, query }, headers, body, parseAs: "text" } as never;
  await client.request(method.toLowerCase() as "get", found.template as "/v1/me", given);
  return reply;
}

/** The path and the query as the generated client writes them. */
function addressOf(url: string, { template, params }: Located, query: Record<string, string>): string {
  const { pathname, search } = new URL(
    createFinalURL(template, {
      baseUrl: url,
      params: { path: params, query },
      querySerializer: createQuerySerializer(),
      pathSerializer: defaultPathSerializer,
    }),
  );
  return pathname + search;
}

type Located = NonNullable<ReturnType<typeof operationAt>>;

/** Opens a stream. The returned `text` grows as data arrives. */
export function openStream(url: string, path: string, { token, signal }: { token: string; signal: AbortSignal }) {
  const stream = { text: "" };
  const sent = request(`${url}${path}`, { headers: { Authorization: `Bearer ${token}` }, agent: false, signal });
  sent.on("error", () => undefined); // the test ends the stream
  sent.on("response", (response) => {
    response.setEncoding("utf8").on("data", (chunk: string) => (stream.text += chunk));
    response.on("error", () => undefined);
  });
  sent.end();
  return stream;
}
