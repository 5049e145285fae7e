import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import type { Config } from "../config/schema.js";
import { FleetError } from "../errors.js";
import { Attempts } from "../gateway/entry/attempts.js";
import type { DoorListeners } from "../gateway/state/door/report.js";
import type { Share, Shares } from "../gateway/state/door/shares.js";
import type { Identity } from "../identity/identity.js";
import type { SignOn } from "../identity/sign-on.js";
import { SignOnEvents } from "../identity/sign-on-events.js";
import type { EventLog } from "../model/events/event.js";
import type { Clock } from "../runtime/clock.js";
import type { ProbeAnswer, Probes } from "../serve/report/probes.js";
import { Authenticator } from "./auth.js";
import type { ApiFleet } from "./fleet.js";
import { ClientAddresses, type Origins } from "./origins.js";
import { unauthenticated } from "./problem.js";
import { Strangers } from "./strangers.js";
import { Heartbeats } from "./streams/heartbeats.js";

export interface HttpContext {
  config: Config;
  clock: Clock;
  signOn: SignOn;
  /** How many connections, requests and bytes each user has at all addresses of this process. */
  shares: Shares;
  fleet: ApiFleet;
  events: EventLog;
}

/** One request, from its admission until its turn is over and its answer is sent (or its client has gone). */
export class Work implements Disposable {
  /** Null until the user is known. */
  identity: Identity | null = null;
  /** The part of the user's limits that the request uses. */
  share: Share | null = null;
  readonly #cut = new AbortController();
  readonly #kept: Disposable[] = [];
  #isOverWithClient = false;
  readonly #onEnd: (work: Work) => void;

  constructor(onEnd: (work: Work) => void) {
    this.#onEnd = onEnd;
  }

  /** Aborts when the door closes, or when the token of the request is no longer valid. */
  get signal(): AbortSignal {
    return this.#cut.signal;
  }

  /** Disposes `thing` when the work ends. Returns `thing`. */
  keep<T extends Disposable>(thing: T): T {
    this.#kept.push(thing);
    return thing;
  }

  /**
   * Counts the bytes of the answer against the user's limits, in place of the bytes of the request's body, until the
   * client has received the answer or has disconnected.
   *
   * @throws FleetError `FLEET_LIMIT_REACHED` if `orRefuse` is set and the user's clients leave too many bytes unread.
   */
  unread(bytes: number, { orRefuse }: { orRefuse: boolean }): void {
    this.share?.buffers(0);
    const over = this.share?.overBytes ?? null;
    if (orRefuse && over !== null) throw over;
    this.share?.buffers(bytes);
  }

  /**
   * Returns {@link signal}. Makes it also abort when the work is disposed, which happens when the client has received
   * the answer or has disconnected.
   */
  endingWithClient(): AbortSignal {
    this.#isOverWithClient = true;
    return this.signal;
  }

  cut(reason: FleetError): void {
    this.#cut.abort(reason);
  }

  [Symbol.dispose](): void {
    if (this.#isOverWithClient) this.#cut.abort(new Error("The client has gone."));
    for (const each of this.#kept.splice(0)) each[Symbol.dispose]();
    this.#onEnd(this);
  }
}

/** The state that all requests at one HTTP door share. */
export class DoorState {
  readonly config: Config;
  readonly clock: Clock;
  readonly fleet: ApiFleet;
  readonly signOn: SignOn;
  readonly authenticator: Authenticator;
  readonly listeners: DoorListeners;
  readonly origins: Origins;
  readonly addresses: ClientAddresses;
  readonly shares: Shares;
  readonly strangers = new Strangers();
  readonly heartbeats: Heartbeats;
  /** The number of streams that were ended because their clients read too slowly. */
  slowClients = 0;
  readonly probes: Probes;
  readonly #work = new Set<Work>();
  #onIdle: (() => void)[] = [];
  readonly #endingWithDrain = new Set<Work>();
  readonly #draining = new AbortController();
  #document: Promise<string> | undefined;

  constructor(
    context: HttpContext,
    { listeners, origins, probes }: Pick<DoorState, "listeners" | "origins"> & { probes: Probes | null },
  ) {
    const { config, clock, fleet, signOn, shares } = context;
    this.config = config;
    this.clock = clock;
    this.fleet = fleet;
    this.listeners = listeners;
    this.origins = origins;
    this.addresses = new ClientAddresses(config.http.proxies);
    this.signOn = signOn.reportingTo(listeners.onSignOn);
    this.authenticator = new Authenticator(this.signOn, new Attempts(), new SignOnEvents(context.events, "http"));
    this.heartbeats = new Heartbeats(clock);
    this.shares = shares;
    this.probes = probes ?? { answer: async (path) => this.#ownAnswer(path) };
  }

  /** The number of requests that have been admitted and not answered, including those whose clients have gone. */
  get working(): number {
    return this.#work.size;
  }

  /** Aborts when the door begins to drain. */
  get draining(): AbortSignal {
    return this.#draining.signal;
  }

  get isDraining(): boolean {
    return this.draining.aborted;
  }

  beginDrain(): void {
    this.#draining.abort(this.refusal());
    for (const work of this.#endingWithDrain) work.cut(this.refusal());
  }

  /** Makes the door abort this work as soon as it drains. Used for streams, which would not end by themselves. */
  endWithDrain(work: Work): void {
    this.#endingWithDrain.add(work);
    if (this.isDraining) work.cut(this.refusal());
  }

  /** Counts a request until the returned object is disposed. */
  begin(): Work {
    const work = new Work(() => {
      this.#work.delete(work);
      this.#endingWithDrain.delete(work);
      if (this.#work.size === 0) for (const resolve of this.#onIdle.splice(0)) resolve();
    });
    this.#work.add(work);
    return work;
  }

  /** Resolves when no request is left. */
  async idle(): Promise<void> {
    if (this.#work.size > 0) await new Promise<void>((resolve) => this.#onIdle.push(resolve));
  }

  /** Aborts all requests that are left. */
  cut(): void {
    for (const work of this.#work) work.cut(this.refusal());
  }

  /** Aborts the requests of suspended users, and those whose tokens were revoked or have expired. Never rejects. */
  async recheckTokens(): Promise<void> {
    for (const detail of this.signOn.takeWarnings()) this.listeners.onEvent?.({ event: "failed", address: "", detail });
    const identities = new Map(
      [...this.#work].flatMap(({ identity }) => (identity ? [[identity.tokenId, identity]] : [])),
    );
    for (const identity of identities.values()) {
      // If the store does not answer, ask it again in the next round.
      if (await this.signOn.isStillGood(identity).catch(() => true)) continue;
      this.listeners.onEvent?.({ event: "token-refused", address: "", user: identity.user });
      const error = await this.signOn.refuseSuspended(identity).then(unauthenticated, (reason: FleetError) => reason);
      for (const work of this.#work) if (work.identity?.tokenId === identity.tokenId) work.cut(error);
    }
  }

  /**
   * The GitHub token with which the user signed on, for the user's sessions. Null if the user signed on with something
   * else, or if the configuration names a provider.
   */
  gitHubTokenOf(identity: Identity): string | null {
    return this.config.provider === null ? this.signOn.gitHubTokenOf(identity) : null;
  }

  refusal(): FleetError {
    return new FleetError("FLEET_DOOR_DRAINING", "This address is about to close and begins no new work. Try again.");
  }

  /** The description of the API, which `npm run schemas` derives from the table of routes. */
  async document(): Promise<string> {
    this.#document ??= readFile(createRequire(import.meta.url).resolve("copilotfleet/schemas/openapi.json"), "utf8");
    return await this.#document;
  }

  #ownAnswer(path: string): ProbeAnswer | null {
    if (path === "/metrics") return null;
    const isReady = path === "/healthz" || !this.isDraining;
    const reasons = isReady ? [] : ["this address is about to close"];
    const body = `${JSON.stringify({ ok: isReady, reasons })}\n`;
    return { status: isReady ? 200 : 503, type: "application/json", body };
  }
}
