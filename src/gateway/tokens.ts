import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import { FleetError, quote } from "../errors.js";
import type { Store, TokenRecord } from "../store/store.js";

/**
 * The tokens that clients show at the front door: `cft_<id>_<secret>`. The id finds the record, the secret has 256
 * random bits, and the store keeps a hash of the whole.
 */
const TOKEN = /^cft_([a-z0-9]{16})_[A-Za-z0-9_-]{43}$/;
const ID_BYTES = 8;
const SECRET_BYTES = 32;
/** Stands in for the hash of a token that is not there, so that looking for one takes as long as comparing one. */
const NO_HASH = "0".repeat(64);

/** A token as it is shown to everybody: the secret only once, by {@link issueToken}. Times are ISO 8601 in UTC. */
export interface TokenView {
  id: string;
  user: string;
  createdAt: string;
  expiresAt: string | null;
  /** Whether its time is over. */
  expired: boolean;
}

export interface IssuedToken {
  /** The token itself. It cannot be had again. */
  token: string;
  id: string;
  user: string;
  expiresAt: string | null;
}

/** Whom a token stands for: a user. */
export interface TokenHolder {
  role?: undefined;
  tokenId: string;
  user: string;
  /** The lease that the user's turns in a session are taken under. */
  lease?: TokenRecord["lease"] | undefined;
}

/** Whom a token stands for: another host of the fleet, which may use one front door, once. */
export interface HostHolder {
  role: "host";
  tokenId: string;
  /** The name of the other host. */
  host: string;
  /** The host whose front door takes the token. */
  door: string;
}

/** A host cannot be a user by its name: no user's has a colon. */
const HOST_PREFIX = "host:";
/** How long another host has to take up its connection, in milliseconds. */
const HOST_TOKEN_MS = 60_000;

type Kind = Pick<TokenRecord, "role" | "door" | "passing" | "lease">;

/**
 * Makes a token for a user.
 *
 * @param ttlMs how long it is good, in milliseconds; null: until it is revoked
 * @param kind `passing` for one that the fleet makes for a connection of its own; `lease` of what is held already
 */
export async function issueToken(
  store: Store,
  user: string,
  ttlMs: number | null,
  kind: Kind = {},
): Promise<IssuedToken> {
  const id = randomBytes(ID_BYTES).toString("hex");
  const token = `cft_${id}_${randomBytes(SECRET_BYTES).toString("base64url")}`;
  const now = await store.now();
  const expiresAt = ttlMs === null ? null : new Date(now + ttlMs).toISOString();
  const record = { ...kind, id, user, sha256: hashOf(token), createdAt: new Date(now).toISOString(), expiresAt };
  await store.createToken(record);
  return { token, id, user, expiresAt };
}

/** Makes a token with which `from` connects to the front door of `to`, once and soon. */
export async function issueHostToken(store: Store, from: string, to: string): Promise<IssuedToken> {
  return await issueToken(store, `${HOST_PREFIX}${from}`, HOST_TOKEN_MS, { role: "host", door: to, passing: true });
}

/** Clears away tokens that the fleet made for connections of its own, and that a crash left behind. */
export async function sweepTokens(store: Store): Promise<void> {
  for (const record of await store.listTokens()) {
    if (record.passing === true && (await isExpired(store, record))) await store.deleteToken(record.id);
  }
}

/**
 * Whom the token stands for, or null when it is not good: malformed, unknown, wrong, revoked or expired, which are not
 * told apart. Costs one read, and a look at the clock for a token that ends.
 */
export async function verifyToken(store: Store, token: unknown): Promise<TokenHolder | HostHolder | null> {
  const id = tokenIdIn(token);
  if (id === undefined) return null;
  const record = await store.readToken(id);
  const good = isSameHash(hashOf(String(token)), record?.sha256 ?? NO_HASH);
  if (!good || record === null || (await isExpired(store, record))) return null;
  const { role, user, door = "", lease } = record;
  if (role === "host") return { role, tokenId: id, host: user.slice(HOST_PREFIX.length), door };
  return { tokenId: id, user, lease };
}

/** Recognizes a token that is shown again, without keeping it. */
export function recognizer(token: string): (shown: unknown) => boolean {
  const hash = hashOf(token);
  return (shown) => typeof shown === "string" && isSameHash(hashOf(shown), hash);
}

/** The id in a token; undefined for anything that is not shaped like one. */
export function tokenIdIn(token: unknown): string | undefined {
  return typeof token === "string" ? TOKEN.exec(token)?.[1] : undefined;
}

/** Whether the token of that id may still be used: neither revoked nor expired since it was verified. */
export async function isTokenGood(store: Store, { tokenId, user }: TokenHolder): Promise<boolean> {
  const record = await store.readToken(tokenId);
  return record !== null && record.role === undefined && record.user === user && !(await isExpired(store, record));
}

/** The tokens of all users, or of one, the newest first. Those of hosts are nobody's to see. */
export async function listTokens(store: Store, user?: string): Promise<TokenView[]> {
  const records = await store.listTokens();
  const now = await store.now();
  return records
    .filter((record) => record.role === undefined && (user === undefined || record.user === user))
    .sort((a, b) => b.createdAt.localeCompare(a.createdAt) || a.id.localeCompare(b.id))
    .map((record) => ({
      id: record.id,
      user: record.user,
      createdAt: record.createdAt,
      expiresAt: record.expiresAt,
      expired: isOver(record, now),
    }));
}

/**
 * Revokes tokens by their ids, or all of a user. One that is gone already counts as revoked. Connections that were made
 * with one end within seconds.
 */
export async function revokeTokens(store: Store, which: { ids: readonly string[] } | { user: string }) {
  const ids = "ids" in which ? which.ids : (await listTokens(store, which.user)).map(({ id }) => id);
  for (const id of ids) await store.deleteToken(id);
  return [...ids];
}

/** @throws FleetError `FLEET_USAGE_INVALID`; what was written may be a whole token and is then not shown. */
export function validateTokenId(value: string): string {
  if (/^[a-z0-9]{1,64}$/.test(value)) return value;
  const what = value.startsWith("cft_")
    ? "A token was given where its id belongs, on a command line that others can read: revoke it by its id, which"
    : `${quote(value)} is not the id of a token: that`;
  throw new FleetError("FLEET_USAGE_INVALID", `${what} is made of lower-case letters and digits.`, {
    suggestions: ["copilotfleet token list"],
  });
}

/** By the store's clock: another host's, which made the token, may say something else than this one's. */
async function isExpired(store: Store, record: TokenRecord): Promise<boolean> {
  return record.expiresAt !== null && isOver(record, await store.now());
}

function isOver({ expiresAt }: TokenRecord, now: number): boolean {
  // A date that cannot be read has passed: the safe side.
  return expiresAt !== null && !(Date.parse(expiresAt) > now);
}

function hashOf(token: string): string {
  return createHash("sha256").update(token).digest("hex");
}

function isSameHash(a: string, b: string): boolean {
  const [left, right] = [Buffer.from(a), Buffer.from(b)];
  return left.length === right.length && timingSafeEqual(left, right);
}
