import { FleetError, quote } from "../errors.js";
import { pause } from "../runtime/deadline.js";
import { readSessionFolder } from "../runtime/session-state.js";
import type { ServerRecord, SessionRecord, Store } from "../store/store.js";

/** How long gc may take to put a record back, and how often it is looked for, in milliseconds. */
const PUT_BACK_MS = 5_000;
const PUT_BACK_POLL_MS = 10;

/**
 * The record of a session whose use the caller has marked, as it is now. gc deletes a record before it looks for marks and
 * puts it back when it finds one; so as long as the session's folder is there, a record that is not is waited for.
 */
export async function markedRecord(
  store: Store,
  { home }: Pick<ServerRecord, "home">,
  id: string,
  signal: AbortSignal,
): Promise<SessionRecord | null> {
  for (const until = performance.now() + PUT_BACK_MS; ; await pause(PUT_BACK_POLL_MS, signal)) {
    const record = await store.readSession(id);
    if (record !== null || readSessionFolder(home, id) === null || performance.now() > until) return record;
  }
}

/**
 * The servers through which a session's state is to be deleted. Unrecorded ids are unique within a home only, so without
 * a user one that lies in several homes is nobody's in particular.
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

/** A session that a client made on the user's own server, past the fleet: it is that user's, since the server is. */
export function foundRecord(server: ServerRecord, id: string): SessionRecord {
  const folder = readSessionFolder(server.home, id);
  return {
    id,
    owner: server.user ?? "",
    purpose: null,
    kind: "private",
    members: [],
    persistence: "persistent",
    serverId: server.id,
    model: null,
    createdAt: (folder?.createdAt ?? new Date()).toISOString(),
    lastUsedAt: (folder?.modifiedAt ?? new Date()).toISOString(),
    ttlMs: null,
    usedBy: null,
    turns: 0,
  };
}
