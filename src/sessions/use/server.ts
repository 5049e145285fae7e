import { serverIdOf } from "../../model/ids.js";
import type { ServerRecord } from "../../model/server.js";
import type { SessionRecord } from "../../model/session.js";
import type { Pool } from "../../pool/pool.js";
import { isRunning } from "../../pool/server.js";
import type { SpawnOptions } from "../../pool/start/start.js";
import { isUsed, setEvictionMarker } from "../../pool/use-markers.js";
import { isLoadedBy } from "../../runtime/history/session-state.js";
import type { Store } from "../../store/ports.js";
import type { SessionsContext } from "../context.js";
import type { TurnLease } from "../leases/seen.js";

export interface Chooser extends Pick<SpawnOptions, "sharedUntil"> {
  user: string;
  /**
   * A lease on the session that the caller holds. With it, a session on shared servers may be opened where the user is
   * placed, and not only where it was last.
   */
  lease?: TurnLease | undefined;
  signal: AbortSignal;
}

/**
 * The server on which to open a recorded session: its owner's own server, or the shared server that the record names. Only
 * the holder of its lease may move it. A session that no host has is brought to this host, if it belongs here.
 *
 * @param asked the present record, because an earlier one may name a server that no longer has the session
 */
export async function serverFor(
  { pool, store, takeover, directory }: Pick<SessionsContext, "pool" | "store" | "takeover" | "directory">,
  asked: SessionRecord,
  { user, lease, signal, sharedUntil }: Chooser,
): Promise<ServerRecord> {
  await directory.assertStorage();
  const record = (await directory.has(asked)) ? asked : await takeover.settle(asked, signal);
  const start = { signal, sharedUntil };
  if (record.serverId === serverIdOf(record.owner)) return (await pool.serverOf(record.owner, start)).server;
  if (lease === undefined) return await pool.shared(record.serverId, start);
  return await serverUnderLease(record, { store, pool, user, lease, signal });
}

export interface Move {
  store: Store;
  pool: Pool;
  /** The user whose placement decides where to open a session that no server has in memory. */
  user: string;
  lease: TurnLease;
  signal: AbortSignal;
}

/**
 * Returns the shared server on which the holder of a session's lease opens the session. If a server has the session in
 * memory, this is that server. Otherwise it is the server on which the holder is placed, and the record is changed to name
 * it.
 *
 * Two servers must never have the same session in memory. A process that uses a session without a lease sets its use marker
 * first, and then checks that the record still names the server. So this function sets an eviction marker on the old server
 * before it changes the record, and leaves the session there if it is in use. If both processes do this at once, at least
 * one of them sees the other.
 *
 * @param record If somebody moved the session after this was read, the returned server may be wrong. The caller finds out
 * when it reads the record under its use marker.
 * @throws FleetError `FLEET_LEASE_LOST`, and as `Pool.shared`.
 */
export async function serverUnderLease(
  record: SessionRecord,
  { store, pool, user, lease, signal }: Move,
): Promise<ServerRecord> {
  const { id } = record;
  const { servers } = await store.registry.read();
  const holder = Object.values(servers).find((server) => server.isolation === "shared" && isLoaded(server, id));
  const last = servers[record.serverId];
  // This also applies if the old server is no longer recorded and no other has the session. A server without a record cannot
  // have markers, so it is started again.
  if (last === holder) return await pool.shared(record.serverId, { signal });
  // Check this before choosing another server, which would be started in vain.
  if (holder === undefined && last !== undefined && isUsed(last, id))
    return await pool.shared(record.serverId, { signal });
  const target = holder ?? (await pool.sharedServerFor(user, { signal })).server;
  if (target.id === record.serverId) return target;
  using marker = last && setEvictionMarker(last, id);
  if (marker === null || (last !== undefined && isLoaded(last, id)))
    return await pool.shared(record.serverId, { signal });
  await lease.check();
  await store.sessions.update(id, (draft) => {
    // Leave the record alone if this host released the session, or another host took it, after the record was read.
    // Comparing `serverId` is not enough, because servers of two hosts may have the same id.
    const isOurs = draft.host === record.host && draft.term === record.term && draft.released === record.released;
    const isStill = isOurs && draft.from?.mark === record.from?.mark && draft.serverId === record.serverId;
    if (isStill) draft.serverId = target.id;
  });
  return target;
}

function isLoaded(server: ServerRecord, id: string): boolean {
  return server.process !== null && isRunning(server) && isLoadedBy(server.home, id, server.process.pid);
}
