import type { ProviderConfig } from "@github/copilot-sdk";
import { fleetClosed } from "../base/errors.js";
import type { ServerRecord } from "../base/server.js";
import type { Consumer, UsageRecorder } from "../base/usage.js";
import type { Environment } from "../config/load/paths.js";
import type { Config, RemoteProvider } from "../config/schema.js";
import type { EchoModel } from "./echo.js";
import type { ModelRequests } from "./gateway/exchange.js";
import type { ModelGateway } from "./gateway/gateway.js";
import type { GatewaySocket } from "./gateway/gateway-socket.js";
import type { BudgetCheck, MeteredConsumer } from "./gateway/request-meter.js";
import { describeProvider, ProviderKey } from "./provider-key.js";

/** A provider that a server got for a session. */
interface GivenProvider {
  provider: ProviderConfig;
  /** The launch of the server. */
  launchId: string | null;
  /** The stamp that the session's note had at that time. It changes when a server gets another provider. */
  stamp: string;
}

/** The part of a server's record that decides how the server reaches a model. */
type ModelUser = Pick<ServerRecord, "sandbox">;

interface ModelProviderContext {
  env: Environment;
  /** The folder of Unix sockets for servers with a restricted network. */
  networkFolder: string;
  ledger?: UsageRecorder;
  checkBudget?: BudgetCheck;
}

/**
 * The configured model provider of a fleet. Starts the echo model or the model gateway inside this process when a
 * session first needs it.
 */
export class ModelProvider implements AsyncDisposable {
  readonly #provider: Config["provider"];
  /** The variables that servers get. */
  readonly #serverEnv: Environment;
  /** Null if the model service needs no key. */
  readonly #key: ProviderKey | null;
  #echo: Promise<EchoModel> | undefined;
  #starting: Promise<ModelGateway> | undefined;
  #gateway: ModelGateway | undefined;
  readonly #context: ModelProviderContext;
  #socket: Promise<GatewaySocket> | undefined;
  /** For each session with uses in this process: how many are not over, and what a server got for it last. */
  readonly #uses = new Map<string, { count: number; given: GivenProvider | null }>();
  readonly #consumers = new Map<string, MeteredConsumer>();
  #isClosed = false;

  constructor({ provider, runtime }: Pick<Config, "provider" | "runtime">, context: ModelProviderContext) {
    const { env } = context;
    this.#provider = provider;
    this.#context = context;
    this.#serverEnv = Object.fromEntries([...runtime.env, ...CERTIFICATES].map((name) => [name, env[name]]));
    const source = provider === null || provider.type === "echo" ? null : provider.apiKey;
    this.#key = source === null ? null : new ProviderKey(source, env);
  }

  /** The counts of model requests at this process's gateway; zero if it has none. */
  get requests(): Readonly<ModelRequests> {
    return this.#gateway?.requests ?? { inFlight: 0, failed: 0 };
  }

  /** @throws FleetError `FLEET_MODEL_UNCONFIGURED` when the provider's key cannot be read; `FLEET_CLOSED`. */
  async check(): Promise<void> {
    if (this.#isClosed) throw fleetClosed();
    await this.#key?.get();
  }

  /**
   * Returns the provider of one session, for `session.create` and `session.resume`. Null for GitHub's own models. With
   * the model gateway, the provider works until the last {@link keep} of the session is disposed. With the echo model,
   * it works until this object is disposed.
   *
   * @param server the server of the session. If its network is restricted, a model service is always reached through
   * the model gateway, even if it needs no key. If the network has an allow-list, this restarts the proxy if the proxy
   * has died.
   * @throws FleetError as {@link check}.
   */
  async of(sessionId: string, server: ModelUser): Promise<ProviderConfig | null> {
    await this.check();
    if (server.sandbox?.network === "allow-list") {
      const { ensureProxy } = await import("../sandbox/network/egress.js");
      await ensureProxy(this.#context.networkFolder);
    }
    const provider = this.#provider;
    if (provider === null) return null;
    if (provider.type === "echo") {
      // Load the echo model only here: node:http takes time to load, and most fleets never use it.
      this.#echo ??= import("./echo.js").then(async ({ startEchoModel }) => await startEchoModel());
      const baseUrl = await this.#addressOf(await this.#echo, server);
      return { type: "openai", wireApi: "completions", baseUrl, apiKey: "echo" };
    }
    if (!isRestricted(server) && this.#key === null) return describeProvider(provider);
    this.#starting ??= this.#start(provider, this.#key);
    const gateway = await this.#starting;
    return gateway.providerFor(sessionId, await this.#addressOf(gateway, server));
  }

  /** The address under which a server reaches the echo model or the model gateway of this process. */
  async #addressOf(model: Pick<ModelGateway, "baseUrl" | "accept">, server: ModelUser): Promise<string> {
    if (!isRestricted(server)) return model.baseUrl;
    this.#socket ??= import("./gateway/gateway-socket.js")
      .then(
        async ({ GatewaySocket }) =>
          await GatewaySocket.open(this.#context.networkFolder, (socket) => model.accept(socket)),
      )
      .catch((error: unknown) => {
        this.#socket = undefined; // the next use tries again
        throw error;
      });
    const url = new URL(model.baseUrl);
    url.host = (await this.#socket).host;
    return url.href.replace(/\/$/, "");
  }

  async #start(provider: RemoteProvider, key: ProviderKey | null): Promise<ModelGateway> {
    const { ModelGateway } = await import("./gateway/gateway.js");
    const { ledger, checkBudget } = this.#context;
    const metering = ledger && { ledger, consumers: this.#consumers, ...(checkBudget && { checkBudget }) };
    this.#gateway = await ModelGateway.start(provider, key, this.#serverEnv, { metering });
    return this.#gateway;
  }

  /**
   * Records a use of a session by this process, until the result is disposed. The session's token at the model gateway
   * is valid while at least one use is recorded.
   */
  keep(sessionId: string): Disposable {
    const use = this.#uses.get(sessionId) ?? { count: 0, given: null };
    this.#uses.set(sessionId, use);
    use.count++;
    let isKept = true;
    return {
      [Symbol.dispose]: () => {
        if (isKept) use.count--;
        isKept = false;
        if (use.count > 0 || this.#uses.get(sessionId) !== use) return;
        this.#uses.delete(sessionId);
        this.#consumers.delete(sessionId);
        this.#gateway?.forget(sessionId);
      },
    };
  }

  /**
   * Makes later model requests of the session count for this consumer. Call it after {@link keep}. Dispose the result
   * when the turn is over. From then on, the gateway refuses the session's requests, until the next turn.
   *
   * @param isTurn whether a turn begins. If not, a consumer that the session already has stays.
   */
  attribute(consumer: Consumer, isTurn: boolean): Disposable {
    const { sessionId } = consumer;
    const known = this.#consumers.get(sessionId);
    const { turns = 0, isExpected = false } = known ?? {};
    if (isTurn || known === undefined)
      this.#consumers.set(sessionId, {
        ...consumer,
        passed: 0,
        turns: turns + Number(isTurn),
        isExpected,
        trouble: null,
      });
    let isOver = !isTurn;
    return {
      [Symbol.dispose]: () => {
        const now = this.#consumers.get(sessionId);
        if (!isOver && now !== undefined) now.turns--;
        isOver = true;
      },
    };
  }

  /**
   * Makes the gateway pass on the session's requests outside of turns, too, while this process uses the session. Call
   * it when a client asks for work outside of a turn, or when a turn leaves tasks in the background.
   */
  expectRequests(sessionId: string): void {
    const consumer = this.#consumers.get(sessionId);
    if (consumer !== undefined) consumer.isExpected = true;
  }

  /**
   * The last provider that this process gave to a server for the session. Null if no {@link keep} of the session is
   * left, or if {@link noteGiven} was not called or was called with null.
   */
  lastGiven(sessionId: string): GivenProvider | null {
    return this.#uses.get(sessionId)?.given ?? null;
  }

  /** @param given null if the server may have another provider now, or none */
  noteGiven(sessionId: string, given: GivenProvider | null): void {
    const use = this.#uses.get(sessionId);
    if (use !== undefined) use.given = given;
  }

  /** Whether model requests of the session have passed the gateway since the last {@link attribute} of a turn. */
  hasPassed(sessionId: string): boolean {
    return (this.#consumers.get(sessionId)?.passed ?? 0) > 0;
  }

  /**
   * Why the last model request of the session's turn has no answer. Null if it has one, or if none passed the gateway.
   */
  troubleOf(sessionId: string): string | null {
    return this.#consumers.get(sessionId)?.trouble ?? null;
  }

  /**
   * Makes the model requests of a session wait for `work`, until the result is disposed. `work` must never reject. Does
   * nothing if this process has no model gateway.
   */
  beforeRequests(sessionId: string, work: () => Promise<void>): Disposable {
    return this.#gateway?.before(sessionId, work) ?? { [Symbol.dispose]: () => undefined };
  }

  /** Stops the echo model and the model gateway. Afterwards, no session that uses them can take a turn. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosed = true;
    await (await this.#socket)?.close();
    await (await this.#echo)?.close();
    await (await this.#starting)?.close();
  }
}

/** The model provider during one use of a session. The model gateway serves the session until this is disposed. */
export class ModelUse implements Disposable {
  readonly #kept: Disposable;
  readonly #turn: Disposable;
  /**
   * Whether the server has the provider and the token of this use. Each use has to check that, because another process
   * may have run the last turn. The server may then still have that process's token, and the address of its model
   * gateway, which ends with it. Set it to false when the service has refused the credential, because another prompt of
   * the same turn may follow, which needs a new one.
   */
  isGiven = false;

  /** @param isTurn whether the use takes a turn, as for {@link ModelProvider.attribute} */
  constructor(provider: Pick<ModelProvider, "keep" | "attribute">, consumer: Consumer, isTurn: boolean) {
    this.#kept = provider.keep(consumer.sessionId);
    this.#turn = provider.attribute(consumer, isTurn);
  }

  [Symbol.dispose](): void {
    this.#turn[Symbol.dispose]();
    this.#kept[Symbol.dispose]();
  }
}

function isRestricted({ sandbox }: ModelUser): boolean {
  return sandbox?.network !== undefined;
}

/** The variables that name certificates. Servers get them in addition to `runtime.env`. */
const CERTIFICATES = ["SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS"];
