import { createHash, randomBytes } from "node:crypto";
import type { Socket } from "node:net";
import type { ProviderConfig } from "@github/copilot-sdk";
import type { UsageRecorder } from "../../base/usage.js";
import type { Environment } from "../../config/load/paths.js";
import type { RemoteProvider } from "../../config/schema.js";
import { type LoopbackServer, listenOnLoopback } from "../loopback.js";
import { describeProvider, type ProviderKey, withKey } from "../provider-key.js";
import { Exchange, FailureReport, type GatewaySession, type ModelRequests } from "./exchange.js";
import type { BudgetCheck, Consumers } from "./request-meter.js";
import { openUpstreams, type Upstream } from "./upstream.js";
import { WireFormat } from "./wire.js";

/**
 * How long the model service may be silent, in milliseconds. It is shorter than the 10 minutes that the runtime
 * (1.0.85) waits, so that the error names the service.
 */
const SILENCE_MS = 9 * 60 * 1000;

export interface GatewayOptions {
  /** How long the model service may be silent, in milliseconds. Only tests set it. */
  silenceMs?: number | undefined;
  /** Counts the requests that consume tokens, and refuses those that the sessions' consumers may not make. */
  metering?: { ledger: UsageRecorder; consumers: Consumers; checkBudget?: BudgetCheck } | undefined;
}

/** A session that this process uses. */
interface Session extends GatewaySession {
  readonly id: string;
  readonly token: string;
  /** The work for which all requests of the session wait. */
  before?: (() => Promise<void>) | undefined;
}

/**
 * Stands between servers and the model service, so that servers do not need the provider's key. Each session gets a
 * token, which is valid only at this gateway, and only while this process uses the session.
 */
export class ModelGateway {
  readonly requests: ModelRequests = { inFlight: 0, failed: 0 };
  readonly #server: LoopbackServer;
  readonly baseUrl: string;
  readonly #provider: RemoteProvider;
  readonly #open: () => Upstream;
  /** By session id. */
  readonly #sessions = new Map<string, Session>();
  /**
   * By the digests of the sessions' tokens. The duration of a look-up by digest does not reveal how much of a wrong
   * token is right.
   */
  readonly #byToken = new Map<string, Session>();

  private constructor(server: LoopbackServer, provider: RemoteProvider, open: () => Upstream) {
    this.#server = server;
    this.#provider = provider;
    this.#open = open;
    // Keep the path of the provider's URL, because the runtime makes the paths of its requests from it.
    this.baseUrl = `http://127.0.0.1:${server.port}${new URL(provider.baseUrl).pathname.replace(/\/+$/, "")}`;
  }

  /** @param env the variables that servers get. They name the proxy and the certificates for the model service. */
  static async start(
    provider: RemoteProvider,
    key: ProviderKey | null,
    env: Environment,
    { silenceMs = SILENCE_MS, metering }: GatewayOptions = {},
  ): Promise<ModelGateway> {
    const wire = new WireFormat(provider);
    const open = openUpstreams(provider.baseUrl, env);
    const report = new FailureReport(provider);
    const underWay = new Map<string, number>();
    const server = await listenOnLoopback((request, response) => {
      const secret = wire.secretOf(request.headers);
      const session = secret === null ? undefined : gateway.#byToken.get(digest(secret));
      const { requests } = gateway;
      const context = { wire, report, key, requests, underWay, silenceMs, metering: metering ?? null };
      const exchange = new Exchange(context, request, response);
      const consumer = metering?.consumers.get(session?.id ?? "");
      if (session?.before === undefined) void exchange.run(session, consumer);
      else void session.before().then(async () => await exchange.run(session, consumer));
    });
    const gateway = new ModelGateway(server, provider, open);
    return gateway;
  }

  /** Serves a connection that another listener has accepted, such as a Unix socket. */
  accept(connection: Socket): void {
    this.#server.accept(connection);
  }

  /**
   * The provider settings of a session: the address of this gateway, and the session's token for it. The token stays
   * the same until {@link forget} revokes it.
   *
   * @param baseUrl the address under which the server of the session reaches this gateway
   */
  providerFor(sessionId: string, baseUrl = this.baseUrl): ProviderConfig {
    const provider = { ...this.#provider, baseUrl };
    return withKey(describeProvider(provider), provider, this.#sessionOf(sessionId).token);
  }

  #sessionOf(id: string): Session {
    const known = this.#sessions.get(id);
    if (known !== undefined) return known;
    const token = `cfm-${randomBytes(32).toString("base64url")}`;
    const session = { id, token, upstream: this.#open(), keptBytes: 0 };
    this.#sessions.set(id, session);
    this.#byToken.set(digest(session.token), session);
    return session;
  }

  /** Makes each request of the session wait for `work`, until the result is disposed. `work` must never reject. */
  before(sessionId: string, work: () => Promise<void>): Disposable {
    const session = this.#sessionOf(sessionId);
    session.before = work;
    return {
      [Symbol.dispose]: () => {
        if (session.before === work) session.before = undefined;
      },
    };
  }

  /**
   * Revokes the session's token, and closes its connections to the model service. Requests that are under way go on.
   */
  forget(sessionId: string): void {
    const session = this.#sessions.get(sessionId);
    if (session === undefined) return;
    this.#sessions.delete(sessionId);
    this.#byToken.delete(digest(session.token));
    session.upstream[Symbol.dispose]();
  }

  /** Stops listening and cuts all requests. May be called twice. */
  async close(): Promise<void> {
    const closed = this.#server.close();
    for (const id of [...this.#sessions.keys()]) this.forget(id);
    await closed;
  }
}

function digest(token: string): string {
  return createHash("sha256").update(token).digest("hex");
}
