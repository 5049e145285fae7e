import { FleetError, quote } from "../errors.js";
import { readSessionFolder } from "../runtime/session-state.js";
import type { ServerRecord, SessionRecord } from "../store/store.js";

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
