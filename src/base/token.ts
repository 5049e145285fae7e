import { timingSafeEqual } from "node:crypto";
import { FleetError, quote } from "./errors.js";
import { sha256 } from "./values/text.js";

/** The record of a token that a client presents at the front door. It never contains the token itself. */
export interface TokenRecord {
  /**
   * `host`: the token identifies another host of the fleet and is valid for one connection. `revoked`: not a token, but
   * the revocation of a credential that the fleet did not make. `code`: not a token, but a one-time code, which the
   * console exchanges for a token. Absent: the token identifies a user.
   */
  role?: "host" | "revoked" | "code";
  /** For a token with `passing`: the only host whose front door accepts it. */
  door?: string;
  /**
   * Set if the fleet made the token for a single connection. A client can present it once, within a minute. The fleet
   * deletes the token when that connection ends. After a crash, the token expires.
   */
  passing?: true;
  /**
   * For a token with `passing`: the user's turns in this session run under the lease with this fence. The process that
   * made this token has proved to the store that it has the lease's token.
   */
  lease?: { sessionId: string; fence: number };
  /**
   * For a token with `passing`: the id of the credential that a client showed to the process that made this token. Null
   * if that process acts for no client.
   */
  shown?: string | null;
  /** The actions that the token allows. Absent: `use`. */
  scopes?: readonly string[];
  /** The only session that the token is valid for. Absent: all sessions of the user. */
  sessionId?: string;
  /** The purpose of the token, as its issuer wrote it. */
  label?: string;
  /**
   * The identity of a client that a front door relays, as that front door verified it. The token is valid once, at the
   * front door of host `door`. So the client's own credential is never sent to another host.
   */
  relayed?: object;
  /** 1 to 64 lower-case letters and digits. It is part of the token, so that one read finds the record. */
  id: string;
  /** For a host's token: `host:` and the host's name, which is not a valid user id. */
  user: string;
  /** SHA-256 of the whole token, in hex. A plain hash is safe, because a token has 256 random bits. */
  sha256: string;
  /** ISO 8601, UTC. */
  createdAt: string;
  /** When the token expires; null: it is valid until it is revoked. */
  expiresAt: string | null;
  /** The original expiry (null: never) of a token that somebody made expire earlier. Absent for all other tokens. */
  issuedUntil?: string | null;
}

/**
 * The expiry or revocation of a token or another credential. Each host also remembers it outside of the store. Times
 * are ISO 8601 in UTC.
 */
export interface TokenEnd {
  /** The id of the record. */
  id: string;
  /** When the token expires; null: it is revoked. */
  at: string | null;
  /** When it would have expired anyway; null: never. */
  until: string | null;
}

/** Returns the record with the expiry `at`. If the token expires at or before `at` anyway, returns the same record. */
export function endedBy(record: TokenRecord, at: string): TokenRecord {
  const isEarlier = record.expiresAt === null || !(Date.parse(record.expiresAt) <= Date.parse(at));
  const { issuedUntil = record.expiresAt } = record;
  return isEarlier ? { ...record, expiresAt: at, issuedUntil } : record;
}

export function isTokenId(text: string): boolean {
  return /^[a-z0-9]{1,64}$/.test(text);
}

/** Checks a token id. @throws FleetError `FLEET_INTERNAL` for any other text, which only a bug can pass here */
export function assertTokenId(id: string): void {
  if (!isTokenId(id)) throw new FleetError("FLEET_INTERNAL", `${quote(id)} is not the id of a token.`);
}

export function tokenExists(id: string): FleetError {
  return new FleetError("FLEET_INTERNAL", `There is already a token ${id}.`);
}

/** The hash of a token. It needs no salt and cannot be reversed, because a token has 32 random bytes. */
export function hashToken(token: string): string {
  return sha256(token);
}

/** Compares in constant time, so that the duration does not reveal where the two hashes differ. */
export function isSameHash(hash: string, other: string): boolean {
  const [a, b] = [Buffer.from(hash), Buffer.from(other)];
  return a.length === b.length && timingSafeEqual(a, b);
}
