import { isDeepStrictEqual } from "node:util";
import type { EventLog } from "../base/event.js";
import type { SessionRecord } from "../base/session.js";
import type { Duration } from "../base/values/measures.js";
import type { Config } from "../config/schema.js";
import type { Store } from "../store/store.js";
import { sessionChanged, sessionNotFound } from "./problems.js";
import { noteShared } from "./sessions.js";
import type { SessionView } from "./view.js";

/** The changes to a session. A field that is left out stays as it is. */
export interface UpdateSessionOptions {
  user: string;
  /** Null: the session has no purpose. */
  purpose?: string | null | undefined;
  /** Null: the session has no title, and lists show its id. */
  title?: string | null | undefined;
  /** How long gc keeps the session after its last use. Null: `session.ttl` of the configuration applies. */
  ttl?: Duration | null | undefined;
  /** Other users who may use the session. A member who is removed cannot begin any more turns. */
  members?: readonly string[] | undefined;
  /**
   * The session as `get` or `list` returned it. If its purpose, title, TTL or members have changed since, nothing is
   * changed.
   */
  expected?: Pick<SessionView, "purpose" | "title" | "ttlMs" | "members"> | undefined;
}

/** A field that is undefined stays as it is. */
export interface SessionUpdate {
  /** Null: the session has no purpose. */
  purpose?: string | null | undefined;
  /** Null: the session has no title. */
  title?: string | null | undefined;
  /** Milliseconds after the last use until gc may delete the session; null: the fleet's configuration decides. */
  ttlMs?: number | null | undefined;
  /** The session is then collaborative, even if the list is empty. A removed member cannot begin any more turns. */
  members?: readonly string[] | undefined;
  /**
   * The session as the caller read it. If it has changed since, the update fails. Undefined: there is no such check.
   */
  expected?: Pick<SessionView, "purpose" | "title" | "ttlMs" | "members"> | undefined;
}

/**
 * Changes the purpose, the title, the TTL or the members of a session.
 *
 * @throws FleetError `FLEET_SESSION_NOT_FOUND` when the session does not exist or belongs to another user;
 * `FLEET_SESSION_CHANGED` when it is not as expected.
 */
export async function updateSession(
  { store, config, events }: { store: Store; config: Config; events: EventLog },
  id: string,
  owner: string,
  { purpose, title, ttlMs, members, expected }: SessionUpdate,
): Promise<SessionRecord> {
  const record = await store.sessions.update(id, (draft) => {
    // A member may use the session, but only its owner may change it.
    if (draft.owner !== owner) throw sessionNotFound(id);
    if (expected !== undefined && !isAsExpected(draft, expected, config.session.ttlMs)) throw sessionChanged(id);
    if (purpose !== undefined) draft.purpose = purpose;
    if (title === null) delete draft.title;
    else if (title !== undefined) draft.title = title;
    if (ttlMs !== undefined) draft.ttlMs = ttlMs;
    if (members !== undefined) {
      draft.kind = "collaborative";
      draft.members = [...members];
    }
    return { ...draft };
  });
  if (members !== undefined) noteShared(events, record);
  return record;
}

function isAsExpected(
  record: SessionRecord,
  expected: NonNullable<SessionUpdate["expected"]>,
  defaultTtlMs: number | null,
): boolean {
  // The view of a session without a TTL of its own shows the TTL of the configuration.
  const ttlMs = record.ttlMs ?? defaultTtlMs;
  return (
    ttlMs === expected.ttlMs &&
    record.purpose === expected.purpose &&
    (record.title ?? null) === expected.title &&
    isDeepStrictEqual(record.members, expected.members)
  );
}
