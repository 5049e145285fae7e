import type { Pool } from "../pool/pool.js";
import { isRunning } from "../pool/server.js";
import { isUsed, markEviction } from "../pool/use-marks.js";
import { isLoadedBy } from "../runtime/session-state.js";
import type { ServerRecord, SessionRecord, Store } from "../store/store.js";
import type { TurnLease } from "./lease-seen.js";

export interface Move {
  store: Store;
  pool: Pool;
  /** Whose placement decides where a session goes that is in no memory. */
  user: string;
  lease: TurnLease;
  signal: AbortSignal;
}

/**
 * The shared server on which the holder of a session's lease opens it: the one that has it in memory, or else the one that
 * the holder is placed on, which the record then names.
 *
 * Two servers must never have one session in memory. Who uses a session without a lease marks that first, and looks then
 * whether the record still names that server; so the session is marked where it was before the record changes, and stays
 * there when it is in use. Of two that come at once, one sees the other.
 *
 * @param record read under the lease
 * @throws FleetError `FLEET_LEASE_LOST`, and as `Pool.shared`.
 */
export async function serverUnderLease(
  record: SessionRecord,
  { store, pool, user, lease, signal }: Move,
): Promise<ServerRecord> {
  const { id } = record;
  const { servers } = await store.readRegistry();
  const holder = Object.values(servers).find((server) => server.isolation === "shared" && isLoaded(server, id));
  const last = servers[record.serverId];
  // One that is recorded no more cannot be marked: unless another has the session, it is started again.
  if (last === holder) return await pool.shared(record.serverId, { signal });
  // Asked before another is chosen, and started, in vain.
  if (holder === undefined && last !== undefined && isUsed(last, id))
    return await pool.shared(record.serverId, { signal });
  const target = holder ?? (await pool.sharedServerFor(user, { signal })).server;
  if (target.id === record.serverId) return target;
  using mark = last && markEviction(last, id);
  if (mark === null || (last !== undefined && isLoaded(last, id)))
    return await pool.shared(record.serverId, { signal });
  await lease.check();
  await store.updateSession(id, (draft) => {
    // Let go or taken by another host meanwhile, whose servers have the same ids, it is not this one's to say where.
    const isOurs = draft.host === record.host && draft.term === record.term && draft.released === record.released;
    const isStill = isOurs && draft.from?.mark === record.from?.mark && draft.serverId === record.serverId;
    if (isStill) draft.serverId = target.id;
  });
  return target;
}

function isLoaded(server: ServerRecord, id: string): boolean {
  return server.process !== null && isRunning(server) && isLoadedBy(server.home, id, server.process.pid);
}
