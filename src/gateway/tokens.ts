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

/** Whom a token stands for. */
export interface TokenHolder {
  tokenId: string;
  user: string;
}

/** Makes a token for a user. @param ttlMs how long it is good, in milliseconds; null: until it is revoked. */
export async function issueToken(store: Store, user: string, ttlMs: number | null): Promise<IssuedToken> {
  const id = randomBytes(ID_BYTES).toString("hex");
  const token = `cft_${id}_${randomBytes(SECRET_BYTES).toString("base64url")}`;
  const now = Date.now();
  const expiresAt = ttlMs === null ? null : new Date(now + ttlMs).toISOString();
  const record = { id, user, sha256: hashOf(token), createdAt: new Date(now).toISOString(), expiresAt };
  await store.createToken(record);
  return { token, id, user, expiresAt };
}

/**
 * Whom the token stands for, or null when it is not good: malformed, unknown, wrong, revoked or expired, which are not
 * told apart. Costs one read.
 */
export async function verifyToken(store: Store, token: unknown): Promise<TokenHolder | null> {
  const id = typeof token === "string" ? TOKEN.exec(token)?.[1] : undefined;
  if (id === undefined) return null;
  const record = await store.readToken(id);
  const good = isSameHash(hashOf(String(token)), record?.sha256 ?? NO_HASH);
  return good && record !== null && !isExpired(record) ? { tokenId: id, user: record.user } : null;
}

/** Whether the token of that id may still be used: neither revoked nor expired since it was verified. */
export async function isTokenGood(store: Store, { tokenId, user }: TokenHolder): Promise<boolean> {
  const record = await store.readToken(tokenId);
  return record !== null && record.user === user && !isExpired(record);
}

/** The tokens of all users, or of one, the newest first. */
export async function listTokens(store: Store, user?: string): Promise<TokenView[]> {
  const records = await store.listTokens();
  return records
    .filter((record) => user === undefined || record.user === user)
    .sort((a, b) => b.createdAt.localeCompare(a.createdAt) || a.id.localeCompare(b.id))
    .map((record) => ({
      id: record.id,
      user: record.user,
      createdAt: record.createdAt,
      expiresAt: record.expiresAt,
      expired: isExpired(record),
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

function isExpired({ expiresAt }: TokenRecord): boolean {
  // A date that cannot be read has passed: the safe side.
  return expiresAt !== null && !(Date.parse(expiresAt) > Date.now());
}

function hashOf(token: string): string {
  return createHash("sha256").update(token).digest("hex");
}

function isSameHash(a: string, b: string): boolean {
  const [left, right] = [Buffer.from(a), Buffer.from(b)];
  return left.length === right.length && timingSafeEqual(left, right);
}
