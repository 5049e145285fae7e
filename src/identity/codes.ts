import { hashToken, isSameHash, type TokenRecord } from "../model/token.js";
import type { Store } from "../store/ports.js";
import type { Scope } from "./identity.js";
import { type IssuedToken, isExpired, issueToken, kindOf, tokenIdIn } from "./tokens.js";

/** How long a one-time code is valid, in milliseconds. */
const CODE_MS = 5 * 60_000;
/** How long the token that replaces a code is valid, in milliseconds. */
const SIGNED_IN_MS = 8 * 3_600_000;
/** The label of that token. */
const SIGN_IN = "console sign-in";

type Kind = Pick<TokenRecord, "sessionId"> & { scopes: readonly Scope[] };

/** Issues a code with which a browser can sign in to the console as the user, once, at any host. */
export async function issueCode(store: Store, user: string, kind: Kind): Promise<IssuedToken> {
  return await issueToken(store, user, CODE_MS, { ...kind, role: "code", passing: true });
}

/** Returns the record of a code, without using the code up. Null if the code is not valid. */
export async function readCode(store: Store, code: unknown): Promise<TokenRecord | null> {
  const id = tokenIdIn(code);
  const record = id === undefined ? null : await store.tokens.read(id);
  if (record === null || record.role !== "code" || !isSameHash(hashToken(String(code)), record.sha256)) return null;
  return (await isExpired(store, record)) ? null : record;
}

/**
 * Exchanges a code for a token with the user, the scopes and the session of the code. Null if the code is not valid, or
 * does not belong to `owner`.
 */
export async function redeemCode(store: Store, code: unknown, owner: string): Promise<IssuedToken | null> {
  const record = await readCode(store, code);
  if (record?.user !== owner) return null;
  // If the code is presented to several hosts at once, only one of them can delete the record, and only that one goes
  // on.
  if (!(await store.tokens.delete(record.id))) return null;
  // Record the end of the code, so that this host refuses the code even if somebody with write access to Redis restores
  // the record.
  await store.tokens.noteEnd({ id: record.id, at: null, until: record.expiresAt });
  return await issueToken(store, record.user, SIGNED_IN_MS, { scopes: [], ...kindOf(record), label: SIGN_IN });
}
