import { sha256 } from "../../../config/values/text.js";
import { type FleetError, isFleetError } from "../../../errors.js";
import { newSessionId } from "../../../model/ids.js";
import type { KeyedTurn } from "../../../model/session.js";
import type { KeyedTurnStore } from "../../../store/ports.js";
import type { SessionView } from "../../view.js";
import { makeRoom, TTL_MS } from "./expiry.js";
import { readKeyed } from "./turn-journal.js";

export interface Creation {
  user: string;
  key: string;
  /** Everything that the request asks for. Another request with the same key must ask for the same. */
  content: { sessionId?: string };
  /** Creates the session with this id. */
  create: (id: string) => Promise<SessionView>;
  /** @throws FleetError `FLEET_SESSION_NOT_FOUND` */
  get: (id: string) => Promise<SessionView>;
}

/** After these errors, there is certainly no new session, so the key becomes free again. */
const REFUSALS: readonly FleetError["code"][] = ["FLEET_SESSION_EXISTS", "FLEET_LIMIT_REACHED", "FLEET_USAGE_INVALID"];

/**
 * Creates the session of a request with an idempotency key. The user's requests with the same key create only one
 * session, on any host and even after a crash, because its id is recorded before it is created.
 *
 * @throws FleetError `FLEET_IDEMPOTENCY_KEY_REUSED`; `FLEET_SESSION_NOT_FOUND` when the session was deleted; the error of `create`.
 */
export async function createKeyed(
  store: KeyedTurnStore,
  { user, key, content, create, get }: Creation,
): Promise<SessionView> {
  const digest = sha256(JSON.stringify(["session", content]));
  const known = await readKeyed(store, { user, key, digest });
  if (known !== null && known.outcome !== null) return await get(known.sessionId);
  const record = known ?? newRecord(user, key, digest, content.sessionId ?? newSessionId());
  if (known === null) {
    await makeRoom(store, user);
    // Another request has just recorded the key, and may still be at work. Start again with its record.
    if (!(await store.create(record))) return await createKeyed(store, { user, key, content, create, get });
  }
  const session = await createOnce(record, { create, get }).catch(async (error: unknown) => {
    if (REFUSALS.some((code) => isFleetError(error, code))) await store.delete(user, key);
    throw error;
  });
  await store.replace({ ...record, outcome: "answered" });
  return session;
}

/** Creates the session, or finds the one that another request with the same key has created. */
async function createOnce(
  { sessionId, sessionCreatedAt }: KeyedTurn,
  { create, get }: Pick<Creation, "create" | "get">,
): Promise<SessionView> {
  try {
    return await create(sessionId);
  } catch (error) {
    if (!isFleetError(error, "FLEET_SESSION_EXISTS")) throw error;
    const there = await get(sessionId).catch(() => null);
    if (there === null || there.createdAt < sessionCreatedAt) throw error; // it was there before the request
    return there;
  }
}

/** @returns a record whose `sessionCreatedAt` is the earliest time at which the session can be created */
function newRecord(user: string, key: string, digest: string, sessionId: string): KeyedTurn {
  const now = Date.now();
  const sessionCreatedAt = new Date(now).toISOString();
  const expiresAt = new Date(now + TTL_MS).toISOString();
  const untouched = { sentAtBytes: 0, messageId: null, usage: null, outcome: null };
  return { user, key, sessionId, sessionCreatedAt, digest, expiresAt, ...untouched };
}
