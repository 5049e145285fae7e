import type { IncomingMessage } from "node:http";
import { BlockList, isIP } from "node:net";
import { FleetError, quote } from "../errors.js";

/** The request headers that a page of another origin may send, and the answer headers that it may read. */
const SENT = "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, Last-Event-ID, X-Request-Id";
const READ = "ETag, Location, Retry-After, X-Request-Id";
/** How long a browser may cache the answer to a preflight request, in seconds. */
const REMEMBERED_S = 600;

export interface OriginRules {
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
   * @throws FleetError `FLEET_ORIGIN_REFUSED`.
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
  return new FleetError(
    "FLEET_ORIGIN_REFUSED",
    `The header ${header} is ${given}, which this address does not serve.`,
    {
      suggestions: ["An operator can add the origin to http.origins."],
    },
  );
}
