import type { Config } from "../config/schema.js";
import { isFleetError } from "../errors.js";
import { groupOfServer, groupOfSession, isRunning } from "../pool/server.js";
import { unloadAtOnce } from "../pool/unload.js";
import { hasHistoryIn } from "../runtime/shared-storage.js";
import { findRemains, putBlockBack, type Remain, type RemainKind, removeRemain } from "../runtime/storage-remains.js";
import type { SessionRecord, Store } from "../store/store.js";

/** What a takeover had left in the shared storage. */
export interface ClearedRemain {
  kind: RemainKind;
  /** The session's id; null where it is not known. */
  session: string | null;
  bytes: number;
}

export interface RemainsRequest {
  /** After how long without use a session goes that no record knows, in milliseconds. */
  ttlMs: number;
  dryRun: boolean;
  nowMs: number;
  signal: AbortSignal;
}

/** Nothing rests on it: whoever goes on with a takeover has its mark in the record. In milliseconds. */
const YOUNG_MS = 3_600_000;

/**
 * Clears what takeovers have left below this host's name: that which no record refers to. Safe beside takeovers and beside
 * itself: a mark is in the record before anything is set aside under it, and never again once it was taken out. What may be
 * all that there is of a session stays, and so does the block of a session that there still is, somewhere.
 *
 * @throws FleetError `FLEET_STORAGE_UNUSABLE`.
 */
export async function clearRemains(
  { store, config }: { store: Store; config: Config },
  request: RemainsRequest,
): Promise<ClearedRemain[]> {
  const { shared } = config.storage;
  if (shared === null || store.hosts === null) return [];
  const cleared: ClearedRemain[] = [];
  for (const remain of await findRemains(shared, store.hosts.own)) {
    request.signal.throwIfAborted();
    if (request.nowMs - remain.changedMs < YOUNG_MS) continue;
    // Read anew for each: what is done with it comes right behind.
    const record = remain.session === null ? null : await store.readSession(remain.session);
    if (!(await isDue(remain, record, shared, request))) continue;
    const isCleared = request.dryRun || (await clear(remain, shared, { store, config }));
    if (isCleared) cleared.push({ kind: remain.kind, session: remain.session, bytes: remain.bytes });
  }
  return cleared;
}

async function isDue(
  { kind, hasHistory, changedMs }: Remain,
  record: SessionRecord | null,
  shared: string,
  { ttlMs, nowMs }: RemainsRequest,
): Promise<boolean> {
  switch (kind) {
    case "incoming":
      return true;
    case "block":
      return record === null;
    case "taken":
      // Like any session that no record knows: the record may be what was lost.
      if (record === null) return nowMs - changedMs >= ttlMs;
      if (record.from !== undefined) return false;
      // It was copied, then. Without that it may be all there is, by whatever way it got here.
      return !hasHistory || (await hasHistoryIn(placeOf(record, shared), record.id));
  }
}

function placeOf(record: SessionRecord, shared: string) {
  return { shared, host: record.host ?? "", group: groupOfSession(record) };
}

/** @returns false when it stays, or was not there any more. */
async function clear(
  remain: Remain,
  shared: string,
  { store, config }: { store: Store; config: Config },
): Promise<boolean> {
  const { kind, session } = remain;
  if (kind !== "block" || session === null) return await removeRemain(shared, remain);
  if (!(await isForgotten(remain.group, session, { store, config }))) return false;
  if ((await store.readSession(session)) !== null) return false;
  const isRemoved = await removeRemain(shared, remain);
  // Made anew, and taken again, in this very moment.
  if ((await store.readSession(session)) === null) return isRemoved;
  await putBlockBack(shared, remain);
  return false;
}

/**
 * Makes sure that no server here has the session in memory, which could make its folder anew then. @returns false when one does
 * not say.
 */
async function isForgotten(
  group: string,
  session: string,
  { store, config }: { store: Store; config: Config },
): Promise<boolean> {
  const { servers } = await store.readRegistry();
  const near = Object.values(servers).filter((server) => groupOfServer(server) === group && isRunning(server));
  try {
    for (const server of near) await unloadAtOnce(server, [session], config.health.timeoutMs);
    return true;
  } catch (error) {
    if (!isFleetError(error)) throw error;
    return false;
  }
}
