/** A Redis URL in its parts. Username and password are secrets, and stand in no message. */
export interface RedisUrl {
  host: string;
  port: number;
  /** `rediss://`. */
  tls: boolean;
  username: string | null;
  password: string | null;
  db: number;
  /** Names the fleet: hosts that share it are one fleet, and one database can hold several. */
  fleet: string;
}

export const ALLOWED_REDIS_URL =
  'a redis:// or rediss:// URL such as "redis://127.0.0.1:6379/0", where "?fleet=NAME" keeps several fleets apart';

const DEFAULT_PORT = 6379;
const FLEET = /^[A-Za-z0-9._-]{1,64}$/;

/**
 * Reads a URL that names a database: nothing else may stand in it, since a slip would quietly mean another database, and
 * two hosts that do not mean the same one would be two fleets. @returns null for anything else.
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

/** Null for a part that is empty, undefined for one that cannot be decoded. */
function decode(part: string): string | null | undefined {
  try {
    return part === "" ? null : decodeURIComponent(part);
  } catch {
    return undefined;
  }
}

/** Whether what is sent can be read on no wire: the host is this one. */
export function isLoopback({ host }: { host: string }): boolean {
  return host === "localhost" || host === "::1" || /^127(?:\.\d{1,3}){3}$/.test(host);
}

/** The database as messages and other people may see it. */
export function showRedisUrl({ host, port, tls, db, fleet }: RedisUrl): string {
  const name = host.includes(":") ? `[${host}]` : host;
  const query = fleet === `db${db}` ? "" : `?fleet=${fleet}`;
  return `${tls ? "rediss" : "redis"}://${name}:${port}/${db}${query}`;
}
