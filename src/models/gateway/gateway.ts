import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import type { ProviderConfig } from "@github/copilot-sdk";
import type { Environment } from "../../config/load/paths.js";
import type { RemoteProvider } from "../../config/schema.js";
import type { UsageRecorder } from "../../model/usage/usage.js";
import { describeProvider, type ProviderKey, withKey } from "../provider-key.js";
import { Exchange, type ModelRequests } from "./exchange.js";
import type { Consumers } from "./request-meter.js";
import { openUpstream, type Upstream } from "./upstream.js";
import { WireFormat } from "./wire.js";

/**
 * How long an unused connection of a server stays open, in milliseconds. It is longer than usual pauses between turns,
 * because a request fails if it arrives just when its connection is being closed.
 */
const KEEP_ALIVE_MS = 10 * 60 * 1000;

/** How long the model service may be silent, in milliseconds. The runtime (1.0.85) itself waits 10 minutes. */
const SILENCE_MS = 11 * 60 * 1000;

export interface GatewayOptions {
  /** How long the model service may be silent, in milliseconds. Only tests set it. */
  silenceMs?: number | undefined;
  /** Counts the requests of sessions that have a consumer. Other requests do not count. */
  metering?: { ledger: UsageRecorder; consumers: Consumers } | undefined;
}

/**
 * Stands between servers and the model service, so that servers do not need the provider's key. Each session gets a
 * token, which is valid only at this gateway, and only while this process uses the session.
 */
export class ModelGateway {
  readonly requests: ModelRequests = { inFlight: 0, failed: 0 };
  readonly #server: Server;
  readonly baseUrl: string;
  readonly #provider: RemoteProvider;
  readonly #upstream: Upstream;
  readonly #tokens = new Map<string, string>();
  /**
   * The session ids, by the digests of the sessions' tokens. The duration of a look-up by digest does not reveal how
   * much of a wrong token is right.
   */
  readonly #sessions = new Map<string, string>();
  /** The work for which all requests of a session wait, by session id. */
  readonly #before = new Map<string, () => Promise<void>>();

  private constructor(server: Server, provider: RemoteProvider, upstream: Upstream) {
    const { port } = server.address() as AddressInfo;
    this.#server = server;
    this.#provider = provider;
    this.#upstream = upstream;
    // Keep the path of the provider's URL, because the runtime makes the paths of its requests from it.
    this.baseUrl = `http://127.0.0.1:${port}${new URL(provider.baseUrl).pathname.replace(/\/+$/, "")}`;
  }

  /** @param env the variables that servers get. They name the proxy and the certificates for the model service. */
  static async start(
    provider: RemoteProvider,
    key: ProviderKey | null,
    env: Environment,
    { silenceMs = SILENCE_MS, metering }: GatewayOptions = {},
  ): Promise<ModelGateway> {
    const wire = new WireFormat(provider);
    const upstream = openUpstream(provider.baseUrl, env);
    // Set `noDelay`, because Nagle's algorithm would delay the small pieces of an answer.
    const server = createServer({ noDelay: true, keepAliveTimeout: KEEP_ALIVE_MS, requestTimeout: 0 });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    const gateway = new ModelGateway(server, provider, upstream);
    server.on("request", (request: IncomingMessage, response: ServerResponse) => {
      const secret = wire.secretOf(request.headers);
      const sessionId = secret === null ? undefined : gateway.#sessions.get(digest(secret));
      const { requests } = gateway;
      const context = { wire, upstream, key, requests, silenceMs, ledger: metering?.ledger ?? null };
      const exchange = new Exchange(context, request, response);
      const consumer = metering?.consumers.get(sessionId ?? "");
      const before = gateway.#before.get(sessionId ?? "");
      if (before === undefined) void exchange.run(sessionId !== undefined, consumer);
      else void before().then(async () => await exchange.run(true, consumer));
    });
    return gateway;
  }

  /** Serves a connection that another listener has accepted, such as a Unix socket. */
  accept(connection: Socket): void {
    this.#server.emit("connection", connection);
  }

  /**
   * The provider settings of a session: the address of this gateway, and the session's token for it. The token stays
   * the same until {@link forget} revokes it.
   *
   * @param baseUrl the address under which the server of the session reaches this gateway
   */
  providerFor(sessionId: string, baseUrl = this.baseUrl): ProviderConfig {
    const provider = { ...this.#provider, baseUrl };
    return withKey(describeProvider(provider), provider, this.#tokenOf(sessionId));
  }

  #tokenOf(sessionId: string): string {
    const known = this.#tokens.get(sessionId);
    if (known !== undefined) return known;
    const token = `cfm-${randomBytes(32).toString("base64url")}`;
    this.#tokens.set(sessionId, token);
    this.#sessions.set(digest(token), sessionId);
    return token;
  }

  /** Makes each request of the session wait for `work`, until the result is disposed. `work` must never reject. */
  before(sessionId: string, work: () => Promise<void>): Disposable {
    this.#before.set(sessionId, work);
    return {
      [Symbol.dispose]: () => {
        if (this.#before.get(sessionId) === work) this.#before.delete(sessionId);
      },
    };
  }

  /** Revokes the session's token. */
  forget(sessionId: string): void {
    const token = this.#tokens.get(sessionId);
    if (token === undefined) return;
    this.#tokens.delete(sessionId);
    this.#sessions.delete(digest(token));
  }

  /** Stops listening and cuts all requests. May be called twice. */
  async close(): Promise<void> {
    if (!this.#server.listening) return;
    const closed = once(this.#server, "close");
    this.#server.close();
    this.#server.closeAllConnections();
    this.#upstream[Symbol.dispose]();
    await closed;
  }
}

function digest(token: string): string {
  return createHash("sha256").update(token).digest("hex");
}
