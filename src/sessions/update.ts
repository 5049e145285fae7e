import type { SessionRecord } from "../model/session.js";
import type { Store } from "../store/ports.js";
import { sessionNotFound } from "./problems.js";

/** A field that is undefined stays as it is. */
export interface SessionUpdate {
  /** Null: none. */
  purpose?: string | null | undefined;
  /** Milliseconds after the last use until gc may delete the session; null: the fleet's configuration decides. */
  ttlMs?: number | null | undefined;
  /** The session is then collaborative, even if the list is empty. A member who is removed can begin no more turns. */
  members?: readonly string[] | undefined;
}

/**
 * Changes what the owner of a session chose when creating it.
 *
 * @throws FleetError `FLEET_SESSION_NOT_FOUND` when the session does not exist or belongs to another user.
 */
export async function updateSession(
  store: Store,
  id: string,
  owner: string,
  { purpose, ttlMs, members }: SessionUpdate,
): Promise<SessionRecord> {
  return await store.sessions.update(id, (draft) => {
    // A member may use the session, but it is not the member's to change.
    if (draft.owner !== owner) throw sessionNotFound(id);
    if (purpose !== undefined) draft.purpose = purpose;
    if (ttlMs !== undefined) draft.ttlMs = ttlMs;
    if (members !== undefined) {
      draft.kind = "collaborative";
      draft.members = [...members];
    }
    return { ...draft };
  });
}
