import { sha256 } from "../config/values/text.js";
import type { TokenEnd } from "../model/token.js";
import type { Store } from "../store/ports.js";
import { LONGEST_LIFE_MS } from "./jwt/claims.js";

/** The entry with which each host remembers the revocation of a credential that the fleet did not make. */
export async function foreignEnd(store: Store, tokenId: string): Promise<TokenEnd> {
  const until = new Date((await store.now()) + LONGEST_LIFE_MS).toISOString();
  return { id: recordId(tokenId), at: null, until };
}

/**
 * Revokes a credential that the fleet did not make, by its id, such as `jwt:…`. The store remembers the id for as long
 * as such a credential can be valid.
 */
export async function revokeForeign(store: Store, tokenId: string): Promise<void> {
  const id = recordId(tokenId);
  if ((await store.tokens.read(id)) !== null) return;
  const now = await store.now();
  const [createdAt, expiresAt] = [now, now + LONGEST_LIFE_MS].map((ms) => new Date(ms).toISOString());
  // Nobody can present this record as a token, because no token has an empty hash.
  const record = { role: "revoked" as const, id, user: "revoked:", sha256: "", createdAt: createdAt ?? "" };
  await store.tokens.create({ ...record, expiresAt: expiresAt ?? null });
}

export async function isRevoked(store: Store, tokenId: string): Promise<boolean> {
  const id = recordId(tokenId);
  return (await store.tokens.isNotedRevoked(id)) || (await store.tokens.read(id)) !== null;
}

/**
 * Whether a text is the id of a credential that the fleet did not make. Such an id begins with the kind of credential.
 */
export function isForeignId(text: string): boolean {
  return /^jwt:[\x21-\x7e]{1,128}$/.test(text);
}

/**
 * The id of the record. It is a digest, because the ids of records consist of letters and digits. It is longer than the
 * id of any token of the fleet, so the two cannot collide.
 */
function recordId(tokenId: string): string {
  return sha256(tokenId);
}
