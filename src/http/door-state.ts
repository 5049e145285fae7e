import { readFile } from "node:fs/promises";
import type { IncomingMessage } from "node:http";
import { createRequire } from "node:module";
import { BlockList, isIP, type Socket } from "node:net";
import type { Clock } from "../base/clock.js";
import { FleetError, quote } from "../base/errors.js";
import type { EventLog } from "../base/event.js";
import type { Config } from "../config/schema.js";
import { Attempts } from "../door/entry/connection.js";
import type { DoorListeners } from "../door/state/report.js";
import type { Shares } from "../door/state/shares.js";
import type { Identity } from "../identity/identity.js";
import { type SignOn, SignOnEvents } from "../identity/sign-on.js";
import type { StreamCounts } from "../serve/context.js";
import type { ProbeAnswer, Probes } from "../serve/report/probes.js";
import type { ApiFleet } from "./fleet.js";
import { invalid, unauthenticated } from "./problem.js";
import type { Visit } from "./visit.js";

/** The largest number of open connections without a running request of a signed-on user. One more closes the oldest. */
const MOST = 2_048;

/** A connection to the door. */
interface Connection {
  socket: Socket;
  /** How many requests of a signed-on user run on it. If none does, the connection counts as a stranger. */
  requests: number;
  /** How many of its requests have a token that is being looked up. */
  lookups: number;
}

/**
 * Limits the number of strangers. A stranger is a connection that has shown no valid token, or an idle connection of a
 * user, because one user could otherwise keep any number of idle connections open. Identifies a connection by its
 * remote address and port, because Node.js does not link a TLS socket to the socket below it.
 */
export class Strangers {
  /** The open connections. The one that has been a stranger for the longest time comes first. */
  readonly #connections = new Map<string, Connection>();
  readonly #most: number;

  constructor(most = MOST) {
    this.#most = most;
  }

  /** Closes the oldest stranger if there are too many, unless its token is being looked up and may be valid. */
  arrived(socket: Socket): void {
    const strangers = [...this.#connections].filter(([, { requests }]) => requests === 0);
    const oldest = strangers.find(([, { lookups }]) => lookups === 0);
    if (strangers.length >= this.#most && oldest !== undefined) {
      this.#connections.delete(oldest[0]);
      oldest[1].socket.destroy();
    }
    const name = nameOf(socket);
    this.#connections.set(name, { socket, requests: 0, lookups: 0 });
    socket.on("close", () => {
      if (this.#connections.get(name)?.socket === socket) this.#connections.delete(name);
    });
  }

  /**
   * Counts a request of a signed-on user, or the look-up of a token, until the returned object is disposed. So this
   * connection is not closed in that time.
   */
  hold(socket: Socket, by: "requests" | "lookups"): Disposable {
    const name = nameOf(socket);
    const connection = this.#connections.get(name);
    if (connection === undefined) return { [Symbol.dispose]: () => undefined };
    connection[by]++;
    return {
      [Symbol.dispose]: () => {
        connection[by]--;
        if (by === "lookups" || connection.requests > 0 || this.#connections.get(name) !== connection) return;
        this.#connections.delete(name);
        this.#connections.set(name, connection);
      },
    };
  }
}

function nameOf({ remoteAddress, remotePort }: Socket): string {
  return `${remoteAddress} ${remotePort}`;
}

export interface HttpContext {
  config: Config;
  clock: Clock;
  signOn: SignOn;
  /** How many connections, requests and bytes each user has at all addresses of this process. */
  shares: Shares;
  fleet: ApiFleet;
  events: EventLog;
}

/** The state that all requests at one HTTP door share. */
export class DoorState {
  readonly config: Config;
  readonly clock: Clock;
  readonly fleet: ApiFleet;
  readonly shares: Shares;
  readonly signOn: SignOn;
  readonly attempts = new Attempts();
  readonly signOnEvents: SignOnEvents;
  readonly listeners: DoorListeners;
  readonly origins: Origins;
  readonly addresses: ClientAddresses;
  readonly probes: Probes;
  readonly strangers = new Strangers();
  /** How many streams are open, how many events were sent, and how many streams were ended because of slow clients. */
  readonly streams: StreamCounts = { open: 0, events: 0, slow: 0 };
  readonly #visits = new Set<Visit>();
  #onIdle: (() => void)[] = [];
  readonly #draining = new AbortController();
  #document: Promise<string> | undefined;

  constructor(
    context: HttpContext,
    { listeners, origins, probes }: Pick<DoorState, "listeners" | "origins"> & { probes: Probes | null },
  ) {
    this.config = context.config;
    this.clock = context.clock;
    this.fleet = context.fleet;
    this.shares = context.shares;
    this.signOn = context.signOn.reportingTo(listeners.onSignOn);
    this.signOnEvents = new SignOnEvents(context.events, "http");
    this.listeners = listeners;
    this.origins = origins;
    this.addresses = new ClientAddresses(context.config.http.proxies);
    this.probes = probes ?? { answer: async (path) => this.#ownAnswer(path) };
  }

  /** The number of requests that have been admitted and not answered, including those whose clients have gone. */
  get working(): number {
    return this.#visits.size;
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
    for (const visit of this.#visits) if (visit.endsWithDrain) visit.cut(this.refusal());
  }

  /** Counts a request until {@link ended} is called with it. */
  begun(visit: Visit): void {
    this.#visits.add(visit);
  }

  ended(visit: Visit): void {
    this.#visits.delete(visit);
    if (this.#visits.size === 0) for (const resolve of this.#onIdle.splice(0)) resolve();
  }

  /** Resolves when no request is left. */
  async idle(): Promise<void> {
    if (this.#visits.size > 0) await new Promise<void>((resolve) => this.#onIdle.push(resolve));
  }

  /** Aborts all requests that are left. */
  cut(): void {
    for (const visit of this.#visits) visit.cut(this.refusal());
  }

  /** Aborts the requests of suspended users, and those whose tokens were revoked or have expired. Never rejects. */
  async recheckTokens(): Promise<void> {
    for (const detail of this.signOn.takeWarnings()) this.listeners.onEvent?.({ event: "failed", address: "", detail });
    const identities = new Map(
      [...this.#visits].flatMap(({ identity }) => (identity ? [[identity.tokenId, identity]] : [])),
    );
    for (const identity of identities.values()) {
      // If the store does not answer, ask it again in the next round.
      if (await this.signOn.isStillGood(identity).catch(() => true)) continue;
      this.listeners.onEvent?.({ event: "token-refused", address: "", user: identity.user });
      const error = await this.signOn.refuseSuspended(identity).then(unauthenticated, (reason: FleetError) => reason);
      for (const visit of this.#visits) if (visit.identity?.tokenId === identity.tokenId) visit.cut(error);
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
    return new FleetError("FLEET_POOL_DRAINING", "This address is about to close and begins no new work. Try again.");
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

/** The request headers that a page of another origin may send, and the answer headers that it may read. */
const SENT = "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, Last-Event-ID, X-Request-Id";
const READ = "ETag, Location, Retry-After, X-Request-Id";
/** How long a browser may cache the answer to a preflight request, in seconds. */
const REMEMBERED_S = 600;

interface OriginRules {
  /** `http.origins` of the configuration. */
  origins: readonly string[];
  /** The host in the configured address. Null if another program has opened the socket. */
  listen: string | null;
  isSecure: boolean;
  /** Whether the certificate of the door is for this name. */
  isCertified: (name: string) => boolean;
}

/**
 * Refuses requests from pages of other origins, except those in `http.origins`. A request without the header `Origin`
 * passes this check.
 *
 * Also refuses requests with a foreign name in `Host`. Otherwise, a page could make its own domain name resolve to this
 * address, and so reach a server that only the browser's machine can reach (DNS rebinding).
 */
export class Origins {
  readonly #rules: OriginRules;
  readonly #allowed: ReadonlySet<string>;
  readonly #names: ReadonlySet<string>;

  constructor(rules: OriginRules) {
    this.#rules = rules;
    this.#allowed = new Set(rules.origins);
    this.#names = new Set([
      "localhost",
      ...(rules.listen === null ? [] : [rules.listen.toLowerCase()]),
      ...rules.origins.map((each) => new URL(each).hostname),
    ]);
  }

  /**
   * @returns the headers that allow the requesting page to read the answer; none if the request has no `Origin`
   * @throws FleetError `FLEET_METHOD_DENIED`.
   */
  check({ hosts, origin }: { hosts: readonly string[]; origin: string | undefined }): Record<string, string> {
    const [host, ...others] = hosts;
    const own = readHost(host);
    if (own === null || !this.#isOwnName(own.name)) throw refused("Host", host);
    // Refuse a request with different host names, because a proxy in front of the API may rely on another of them.
    const other = others.find((each) => each.toLowerCase() !== own.host);
    if (other !== undefined) throw refused("Host", other);
    if (origin === undefined) return {};
    const isOwn = origin === `${this.#rules.isSecure ? "https" : "http"}://${own.host}`;
    if (!isOwn && !this.#allowed.has(origin)) throw refused("Origin", origin);
    return { "Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": READ, Vary: "Origin" };
  }

  /**
   * The additional headers of the answer to a preflight request, in which a browser asks whether a page may send a
   * request.
   */
  preflight(methods: readonly string[]): Record<string, string> {
    return {
      "Access-Control-Allow-Methods": methods.join(", "),
      "Access-Control-Allow-Headers": SENT,
      "Access-Control-Max-Age": String(REMEMBERED_S),
    };
  }

  #isOwnName(name: string): boolean {
    // DNS rebinding needs a domain name, so allow every IP address.
    if (isIP(name.replace(/^\[|\]$/g, "")) !== 0) return true;
    return this.#names.has(name) || this.#rules.isCertified(name);
  }
}

/** Finds the addresses of clients, even behind the proxies of `http.proxies`. */
export class ClientAddresses {
  readonly #proxies = new BlockList();

  constructor(proxies: readonly string[]) {
    for (const each of proxies) {
      const [address = "", prefix] = each.split("/");
      if (prefix === undefined) this.#proxies.addAddress(address, familyOf(address));
      else this.#proxies.addSubnet(address, Number(prefix), familyOf(address));
    }
  }

  /**
   * The client's address: that of the connection or, if a proxy made the connection, the last address in
   * `X-Forwarded-For` that does not belong to a proxy.
   */
  of({ socket, rawHeaders }: Pick<IncomingMessage, "socket" | "rawHeaders">): string {
    let address = plainAddress(socket.remoteAddress ?? "");
    const noted = this.#isProxy(address) ? headerValues(rawHeaders, "x-forwarded-for").join().split(",") : [];
    // Each proxy appends the address of its client. A client can forge only the earlier entries, so read from the end.
    while (this.#isProxy(address)) {
      const before = plainAddress(noted.pop()?.trim() ?? "");
      if (isIP(before) === 0) break;
      address = before;
    }
    return address;
  }

  #isProxy(address: string): boolean {
    return isIP(address) !== 0 && this.#proxies.check(address, familyOf(address));
  }
}

/**
 * An address without its port and its brackets. Turns an IPv4-mapped IPv6 address (`::ffff:1.2.3.4`) into plain IPv4.
 */
function plainAddress(text: string): string {
  const withoutPort = /^\[([^\]]*)\](?::\d+)?$/.exec(text)?.[1] ?? /^([\d.]+):\d+$/.exec(text)?.[1] ?? text;
  return withoutPort.replace(/^::ffff:(?=[\d.]+$)/i, "");
}

function familyOf(address: string): "ipv4" | "ipv6" {
  return isIP(address) === 6 ? "ipv6" : "ipv4";
}

/**
 * All host names in a request: those in `Host` headers, and the one in the request line if that contains a complete
 * URL.
 */
export function hostsOf({ rawHeaders, url = "" }: Pick<IncomingMessage, "rawHeaders" | "url">): string[] {
  const inLine = url.startsWith("/") ? undefined : /^https?:\/\/([^/?#]*)/i.exec(url)?.[1];
  return [...headerValues(rawHeaders, "host"), ...(inLine === undefined ? [] : [inLine])];
}

/** @param name in lower case */
function headerValues(rawHeaders: readonly string[], name: string): string[] {
  // In `rawHeaders`, names and values alternate. Reading `headers` instead would make Node.js build a map, and keep it
  // in memory until the stream ends.
  return rawHeaders.filter((_, at) => at % 2 === 1 && rawHeaders[at - 1]?.toLowerCase() === name);
}

function readHost(host: string | undefined): { name: string; host: string } | null {
  if (host === undefined || !/^[A-Za-z0-9.:[\]-]{1,255}$/.test(host) || !URL.canParse(`http://${host}`)) return null;
  const { hostname } = new URL(`http://${host}`);
  return { name: hostname.replace(/\.$/, ""), host: host.toLowerCase() };
}

function refused(header: "Host" | "Origin", value: string | undefined): FleetError {
  const given = value === undefined ? "missing" : quote(value);
  return new FleetError("FLEET_METHOD_DENIED", `The header ${header} is ${given}, which this address does not serve.`, {
    suggestions: ["An operator can add the origin to http.origins."],
  });
}

/** Matches a token of the fleet, of an identity provider or of GitHub, and a query parameter named like a token. */
const TOKEN_IN_URL =
  /cft_[a-z0-9]{16}_|\beyJ[\w-]+\.[\w-]+\.|\b(?:gh[a-z]_|github_pat_)\w{16}|[?&](?:access_token|token|authorization|bearer)=/i;

/** Refuses a token in a URL, because logs and browsers store URLs. */
export function refuseTokenIn(url: string): void {
  const decoded = url.replace(/%[2-7][0-9a-f]/gi, (code) => String.fromCharCode(Number.parseInt(code.slice(1), 16)));
  if (!TOKEN_IN_URL.test(decoded)) return;
  throw invalid("The URL contains a token. Revoke that token, and send a new one in the header Authorization.");
}

/**
 * Refuses paths that mean another path, such as `/v1/sessions/%2e%2e/tokens` for `/v1/tokens`: a proxy in front of the
 * API may let them pass where it would refuse the other path.
 */
export function refuseDotsIn(url: string): void {
  const [path = ""] = url.split(/[?#]/);
  if (!/\/(?:\.|%2e){1,2}(?:\/|$)/i.test(path)) return;
  throw invalid('The path has a part that is "." or "..".');
}
