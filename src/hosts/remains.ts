import type { Config } from "../config/schema.js";
import { isFleetError } from "../errors.js";
import type { SessionRecord } from "../model/session.js";
import { groupOfSession } from "../pool/server.js";
import { hasHistoryIn } from "../runtime/files/shared-storage.js";
import {
  findRemains,
  putBlockBack,
  type Remain,
  type RemainKind,
  removeRemain,
} from "../runtime/files/storage-remains.js";
import type { Store } from "../store/ports.js";
import { unloadFromGroup } from "./takeover.js";

/** A left-over of a takeover in the shared storage. */
export interface ClearedRemain {
  kind: RemainKind;
  /** The session's id; null if it is not known. */
  session: string | null;
  bytes: number;
}

export interface RemainsRequest {
  /** How long after its last change a session that no record names is deleted, in milliseconds. */
  ttlMs: number;
  dryRun: boolean;
  nowMs: number;
  signal: AbortSignal;
}

/**
 * A left-over that changed less than this long ago stays, in milliseconds. Correctness does not depend on this limit,
 * because a takeover that may still continue has its id in the record.
 */
const YOUNG_MS = 3_600_000;

/**
 * Deletes the left-overs of takeovers below this host's name that no record refers to. It is safe to run beside
 * takeovers and beside itself. A takeover records its id (`mark`) before it sets anything aside under that id, and an
 * id that has left the record never returns. It keeps everything that may be the only copy of a session, and it keeps
 * the block of a session that still exists on any host.
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
    // Read the record for each left-over just before the decision, because records change while this loop runs.
    const record = remain.session === null ? null : await store.sessions.read(remain.session);
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
      // Wait as long as for any session without a record, because perhaps only the record was lost.
      if (record === null) return nowMs - changedMs >= ttlMs;
      if (record.from !== undefined) return false;
      // The takeover is complete, so the session was copied. If its place has no history, this may be the only copy.
      return !hasHistory || (await hasHistoryIn(placeOf(record, shared), record.id));
  }
}

function placeOf(record: SessionRecord, shared: string) {
  return { shared, host: record.host ?? "", group: groupOfSession(record) };
}

/** @returns false when the left-over stays or had already disappeared. */
async function clear(
  remain: Remain,
  shared: string,
  { store, config }: { store: Store; config: Config },
): Promise<boolean> {
  const { kind, session } = remain;
  if (kind !== "block" || session === null) return await removeRemain(shared, remain);
  try {
    // A server here that has the session in memory could create its folder again.
    await unloadFromGroup(remain.group, session, { store, config });
  } catch (error) {
    if (!isFleetError(error)) throw error;
    return false;
  }
  if ((await store.sessions.read(session)) !== null) return false;
  const isRemoved = await removeRemain(shared, remain);
  // If the session was created again and taken over since the check above, its place here needs the block again: the
  // empty file that keeps a server from creating the session's folder.
  if ((await store.sessions.read(session)) === null) return isRemoved;
  await putBlockBack(shared, remain);
  return false;
}
