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
import { isUnreadable } from "../store/failures.js";
import type { Store } from "../store/ports.js";
import { unloadFromGroup } from "./takeover.js";

export interface ClearedRemain {
  kind: RemainKind;
  /** The session's id; null if it is not known. */
  session: string | null;
  bytes: number;
}

export interface RemainsRequest {
  /** How long a left-over session that has no record is kept after its last change, in milliseconds. */
  ttlMs: number;
  dryRun: boolean;
  nowMs: number;
  signal: AbortSignal;
}

/**
 * A left-over stays at least this many milliseconds after its last change. Correctness does not depend on this time,
 * because the session's record contains the takeover's id for as long as the takeover may continue.
 */
const YOUNG_MS = 3_600_000;

/**
 * Deletes the left-overs of takeovers in this host's folder of the shared storage, unless a record refers to them.
 * Keeps everything that may be the only copy of a session, and the block of a session that still exists on any host.
 *
 * Two processes may do this at the same time, even during takeovers. This is safe, because a takeover records its id
 * (`mark`) before it moves anything under that id, and no two takeovers have the same id.
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
    // Read the record only now, because records change while this loop runs.
    const record = remain.session === null ? null : await readIfReadable(store, remain.session);
    if (record === "unreadable" || !(await isDue(remain, record, shared, request))) continue;
    const isCleared = request.dryRun || (await clear(remain, shared, { store, config }));
    if (isCleared) cleared.push({ kind: remain.kind, session: remain.session, bytes: remain.bytes });
  }
  return cleared;
}

async function readIfReadable({ sessions }: Store, id: string): Promise<SessionRecord | null | "unreadable"> {
  return await sessions.read(id).catch((error: unknown) => {
    if (!isUnreadable(error)) throw error;
    return "unreadable" as const;
  });
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
      // The session may still exist, and only its record is lost. So wait as long as for any unrecorded session.
      if (record === null) return nowMs - changedMs >= ttlMs;
      if (record.from !== undefined) return false;
      // The takeover is complete. Keep this copy if only it has a history.
      if (!hasHistory) return true;
      return await hasHistoryIn({ shared, host: record.host ?? "", group: groupOfSession(record) }, record.id);
  }
}

/** @returns false if the left-over stays, or if another process has removed it */
async function clear(
  remain: Remain,
  shared: string,
  { store, config }: { store: Store; config: Config },
): Promise<boolean> {
  const { kind, session } = remain;
  if (kind !== "block" || session === null) return await removeRemain(shared, remain);
  if (!(await isUnloaded(session, remain.group, { store, config }))) return false;
  if ((await store.sessions.read(session)) !== null) return false;
  const isRemoved = await removeRemain(shared, remain);
  // The block is an empty file that keeps servers from creating the session's folder. If somebody has created the
  // session again since the check above and another host has taken it over, the block is needed again.
  if ((await store.sessions.read(session)) === null) return isRemoved;
  await putBlockBack(shared, remain);
  return false;
}

/**
 * Removes the blocks of sessions that are being erased from a host's folder, because a block has the id of its session as
 * its name. Leaves a block of this host to gc if a server may still have the session in memory.
 *
 * @param host this host, or a host that never comes back. A server of any other host may have a session in memory, and
 * would create its folder again without the block.
 */
export async function removeBlocks(
  { store, config }: { store: Store; config: Config },
  host: string,
  isErased: (id: string) => boolean | Promise<boolean>,
): Promise<void> {
  const { shared } = config.storage;
  if (shared === null) return;
  for (const remain of await findRemains(shared, host)) {
    const { kind, session, group } = remain;
    if (kind !== "block" || session === null || !(await isErased(session))) continue;
    const isOwn = host === store.hosts?.own;
    if (!isOwn || (await isUnloaded(session, group, { store, config }))) await removeRemain(shared, remain);
  }
}

/**
 * Unloads a session from the servers of this host, because a server that has it in memory would create its folder
 * again. Returns false if a server may still have the session in memory.
 */
async function isUnloaded(id: string, group: string, context: { store: Store; config: Config }): Promise<boolean> {
  try {
    await unloadFromGroup(group, id, context);
    return true;
  } catch (error) {
    if (!isFleetError(error)) throw error;
    return false;
  }
}
