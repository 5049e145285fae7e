import { isIP, isIPv6 } from "node:net";
import { domainToASCII } from "node:url";
import { blankFault } from "./text.js";

/** An entry of `sandbox.allow`. `port`: null for every port. */
export type NetworkRule =
  /** `name`: in lower case and as punycode, `*` for every name, or `*.NAME` for all names below a name. */
  | { name: string; port: number | null }
  /** All addresses that begin with the same `prefix` bits. */
  | { address: string; prefix: number; port: number | null };

export const ALLOWED_NETWORK_RULES =
  'a list of names or addresses, each with a port if it is not 443, such as ["registry.npmjs.org", "*.example.com:8443", "10.1.0.0/16:5432"]';

const HTTPS_PORT = 443;
const LARGEST_PORT = 65_535;
const LABEL = /^[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?$/;

/** Reads `HOST[:PORT]`, or returns null. A port `*` stands for every port, and IPv6 with a port needs brackets. */
export function readNetworkRule(text: string): NetworkRule | null {
  const isPlainIPv6 = isIPv6(text.replace(/\/\d{1,3}$/, ""));
  const [, bracketed, other, digits] = isPlainIPv6
    ? [text, text]
    : (/^(?:\[([^\]]*)\]|([^:[\]]*))(?::(\*|[1-9]\d{0,4}))?$/.exec(text) ?? []);
  const host = bracketed ?? other;
  const port = digits === undefined ? HTTPS_PORT : digits === "*" ? null : Number(digits);
  if (host === undefined || (port ?? 0) > LARGEST_PORT) return null;
  const [, address = "", bits] = /^([^/]*)(?:\/(0|[1-9]\d{0,2}))?$/.exec(host) ?? [];
  const most = { 0: -1, 4: 32, 6: 128 }[isIP(address)] ?? -1;
  if (most >= 0 && !address.includes("%")) {
    const prefix = bits === undefined ? most : Number(bits);
    return prefix > most ? null : { address, prefix, port };
  }
  const name = bracketed === undefined ? readName(host) : null;
  return name === null ? null : { name, port };
}

function readName(text: string): string | null {
  if (text === "*") return "*";
  const isBelow = text.startsWith("*.");
  const name = asciiName(isBelow ? text.slice(2) : text);
  return name === null ? null : `${isBelow ? "*." : ""}${name}`;
}

/**
 * The characters of a name. Refuse others, because `domainToASCII` would decode them or take them for the end of the
 * name.
 */
const OF_NAMES = /^[\w.\-\u0080-\uffff]+$/;

/**
 * A name in lower case, as punycode and without a dot at its end, so that names can be compared. Null for a text that
 * is not a name, and for all forms of an address, such as `0x7f.1`.
 */
export function asciiName(text: string): string | null {
  const name = OF_NAMES.test(text) ? domainToASCII(text.replace(/\.$/, "")) : "";
  const labels = name.split(".");
  if (name.length > 253 || !labels.every((label) => LABEL.test(label))) return null;
  return /^(?:\d+|0x[0-9a-f]*)$/.test(labels.at(-1) ?? "") ? null : name;
}

/** Whether a rule allows connections to this name and port. @param name as {@link asciiName} returns it */
export function allowsName(rule: NetworkRule, name: string, port: number): boolean {
  if (!("name" in rule) || (rule.port !== null && rule.port !== port)) return false;
  if (rule.name === "*" || rule.name === name) return true;
  return rule.name.startsWith("*.") && name.endsWith(rule.name.slice(1));
}

export function networkRuleFault(text: string): string | null {
  if (readNetworkRule(text) !== null) return null;
  const fault = blankFault(text);
  if (fault !== null) return fault;
  if (text.includes("://")) return "which is a URL";
  if (/:\d+$/.test(text) && readNetworkRule(text.replace(/:\d+$/, "")) !== null) return "which has no valid port";
  return "which is neither a name nor an address";
}

/** The parts of a Redis URL. No message shows the user's name. */
export interface RedisUrl {
  host: string;
  port: number;
  tls: boolean;
  username: string | null;
  db: number;
  /** The name of the fleet. All hosts with the same name are one fleet. One database can hold several fleets. */
  fleet: string;
}

export const ALLOWED_REDIS_URL =
  'a redis:// or rediss:// URL without a password (see storeOptions.password), such as "redis://127.0.0.1:6379/0", with "?fleet=NAME" at the end if several fleets share the database';

const DEFAULT_PORT = 6379;
const FLEET = /^[A-Za-z0-9._-]{1,64}$/;

/**
 * Reads the URL of a Redis database, or returns null. Refuses unknown parts in the URL, because a typing error could
 * silently name another database, and hosts with different databases are different fleets.
 */
export function readRedisUrl(text: string): RedisUrl | null {
  if (!/^rediss?:\/\/\S+$/.test(text) || !URL.canParse(text)) return null;
  const url = new URL(text);
  const db = /^\/?$/.test(url.pathname) ? "0" : /^\/(0|[1-9]\d{0,4})$/.exec(url.pathname)?.[1];
  const fleet = url.searchParams.get("fleet") ?? `db${db}`;
  const others = [...url.searchParams.keys()].filter((name, at, all) => name !== "fleet" || all.indexOf(name) !== at);
  if (url.hostname === "" || url.hash !== "" || db === undefined || others.length > 0 || !FLEET.test(fleet))
    return null;
  const username = decode(url.username);
  if (username === undefined || url.password !== "") return null;
  return {
    host: url.hostname.replace(/^\[|\]$/g, ""),
    port: url.port === "" ? DEFAULT_PORT : Number(url.port),
    tls: url.protocol === "rediss:",
    username,
    db: Number(db),
    fleet,
  };
}

/** Returns null for an empty part, and undefined for a part that cannot be decoded. */
function decode(part: string): string | null | undefined {
  try {
    return part === "" ? null : decodeURIComponent(part);
  } catch {
    return undefined;
  }
}

/** Whether the host is this machine, so that the data does not leave it. */
export function isLoopback({ host }: { host: string }): boolean {
  return host === "localhost" || host === "::1" || /^127(?:\.\d{1,3}){3}$/.test(host);
}

/** Shows the database without its credentials, for messages. */
export function showRedisUrl({ host, port, tls, db, fleet }: RedisUrl): string {
  const name = host.includes(":") ? `[${host}]` : host;
  const query = fleet === `db${db}` ? "" : `?fleet=${fleet}`;
  return `${tls ? "rediss" : "redis"}://${name}:${port}/${db}${query}`;
}

export const ALLOWED_SAFE_URL =
  'an https:// URL without a user, a password and a fragment, such as "https://login.example", or an http:// URL of this machine';

/**
 * Whether a text is an https:// URL, or an http:// URL of this machine, without a user, a password and a fragment.
 * Nobody on the network path can change the answers from such a URL.
 */
export function isSafeUrl(text: string): boolean {
  if (/[\s\p{Cc}]/u.test(text) || !URL.canParse(text)) return false;
  const { protocol, username, password, hostname, hash } = new URL(text);
  if (username !== "" || password !== "" || hash !== "") return false;
  return protocol === "https:" || (protocol === "http:" && isLoopback({ host: hostname.replace(/^\[|\]$/g, "") }));
}
