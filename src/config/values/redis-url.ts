/** The parts of a Redis URL. The username and password are secrets, so no message shows them. */
export interface RedisUrl {
  host: string;
  port: number;
  tls: boolean;
  username: string | null;
  password: string | null;
  db: number;
  /** The name of the fleet. All hosts with the same name are one fleet. One database can hold several fleets. */
  fleet: string;
}

export const ALLOWED_REDIS_URL =
  'a redis:// or rediss:// URL such as "redis://127.0.0.1:6379/0", with "?fleet=NAME" at the end if several fleets share the database';

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
  const credentials = { username: decode(url.username), password: decode(url.password) };
  if (credentials.username === undefined || credentials.password === undefined) return null;
  return {
    host: url.hostname.replace(/^\[|\]$/g, ""),
    port: url.port === "" ? DEFAULT_PORT : Number(url.port),
    tls: url.protocol === "rediss:",
    username: credentials.username,
    password: credentials.password,
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
