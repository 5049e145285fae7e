import { FleetError, quote } from "../errors.js";
import type { ServerRecord } from "../model/server.js";
import { newSessionRecord, type SessionRecord } from "../model/session.js";
import { pause } from "../runtime/deadline.js";
import { readSessionFolder } from "../runtime/history/session-state.js";
import type { Store } from "../store/ports.js";
import { isBeingDeleted } from "./gc/journal.js";

/** How long gc may take to restore a record, and how often to look for it, in milliseconds. */
const PUT_BACK_MS = 5_000;
const PUT_BACK_POLL_MS = 10;

/**
 * The present record of a session for which the caller has set a use marker. gc deletes a record before it looks for
 * markers, and restores it if it finds one. So if the record is missing but the session's folder exists, this waits for the
 * record.
 *
 * @throws the signal's own reason when it aborts.
 */
export async function markedRecord(
  store: Store,
  { home }: Pick<ServerRecord, "home">,
  id: string,
  signal: AbortSignal,
): Promise<SessionRecord | null> {
  for (const until = performance.now() + PUT_BACK_MS; ; await pause(PUT_BACK_POLL_MS, signal)) {
    const record = await store.sessions.read(id);
    if (record !== null || readSessionFolder(home, id) === null || performance.now() > until) return record;
  }
}

/**
 * The record of a session in the home of its user's own server, if gc restores it. gc deletes a record before it knows
 * whether it may delete the session. To record the session again at that time would give it a new, empty history. So while
 * gc is at work, this waits for its decision.
 *
 * @returns null if there is no record, and no gc is at work on the session
 * @throws FleetError `FLEET_STATE_BUSY` when gc takes longer than 5 s to decide.
 */
export async function restoredRecord(
  store: Store,
  { home }: Pick<ServerRecord, "home">,
  id: string,
): Promise<SessionRecord | null> {
  for (const until = performance.now() + PUT_BACK_MS; ; await pause(PUT_BACK_POLL_MS, undefined)) {
    const isDecided = !isBeingDeleted(home, id);
    // Read the record only after checking on gc, because gc restores the record before it ends.
    const record = await store.sessions.read(id);
    if (record !== null || isDecided) return record;
    if (performance.now() > until) throw gcUndecided(id);
  }
}

function gcUndecided(id: string): FleetError {
  return new FleetError("FLEET_STATE_BUSY", `gc is about to delete session ${quote(id)}, and has not decided.`, {
    suggestions: ["Try again in a moment.", "copilotfleet list"],
  });
}

/**
 * The servers through which to delete a session's state. The id of an unrecorded session is unique only within a home.
 *
 * @throws FleetError `FLEET_SESSION_AMBIGUOUS` when several users have an unrecorded session with this id and no user is
 * given.
 */
export function holders(
  servers: ServerRecord[],
  id: string,
  record: SessionRecord | null,
  user: string | undefined,
): ServerRecord[] {
  if (record !== null) return servers.filter((server) => server.id === record.serverId);
  const found = servers.filter((server) => server.user !== null && readSessionFolder(server.home, id) !== null);
  if (user !== undefined) return found.filter((server) => server.user === user);
  if (found.length <= 1) return found;
  throw new FleetError("FLEET_SESSION_AMBIGUOUS", `${found.length} users have a session ${quote(id)}.`, {
    suggestions: found.map((server) => `copilotfleet delete ${id} --user ${server.user}`),
  });
}

/** The record for a session that a client made directly on a user's own server. It belongs to that user. */
export function foundRecord(server: ServerRecord, id: string): SessionRecord {
  const folder = readSessionFolder(server.home, id);
  return {
    ...newSessionRecord({ id, owner: server.user ?? "" }, { serverId: server.id }),
    createdAt: (folder?.createdAt ?? new Date()).toISOString(),
    lastUsedAt: (folder?.modifiedAt ?? new Date()).toISOString(),
  };
}
