import type { Dirent } from "node:fs";
import { lstat, readdir, rename, unlink, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { isFleetError, systemCode } from "../base/errors.js";
import { type Budget, removeIfThere } from "../base/held-folder.js";
import { isSessionId } from "../base/ids.js";
import { ifThereLater } from "../base/if-there.js";
import type { SessionRecord } from "../base/session.js";
import type { Config } from "../config/schema.js";
import { incomingPath } from "../runtime/files/copy-folder.js";
import { hasHistoryIn, placePath, statOf, TAKEN_FOLDER, takenPath, usable } from "../runtime/files/shared-storage.js";
import { HISTORY } from "../runtime/history/session-state.js";
import { groupOfSession } from "../servers/server.js";
import { isUnreadable } from "../store/failures.js";
import type { Store } from "../store/store.js";
import { unloadFromGroup } from "./takeover.js";

export interface ClearedRemain {
  kind: RemainKind;
  /** The session's id; null if it is not known. */
  session: string | null;
  bytes: number;
}

interface RemainsRequest {
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
 * Removes the blocks of sessions that are being erased from a host's folder, because a block has the id of its session
 * as its name. Leaves a block of this host to gc if a server may still have the session in memory.
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

/**
 * The kinds of files and folders that takeovers leave below a host's name in the shared storage:
 *
 * - `block`: a plain file at the old path of a session that another host has taken over.
 * - `taken`: the original files of a session that another host has taken over. They exist until the takeover deletes
 *   them. A takeover that is killed leaves them behind.
 * - `incoming`: a copy of a session for this host. It exists until the takeover moves it to the session's new path. A
 *   takeover that is killed leaves it behind.
 */
export type RemainKind = "block" | "taken" | "incoming";

interface Remain {
  kind: RemainKind;
  group: string;
  session: string | null;
  /** Null unless the kind is `taken`. */
  mark: string | null;
  path: string;
  hasHistory: boolean;
  bytes: number;
  /**
   * When any part of this file or folder was last written or moved, by the file system's clock (Unix time in
   * milliseconds).
   */
  changedMs: number;
}

/** The maximum number of entries to measure in one leftover folder, because an agent may have made very many. */
const MOST_MEASURED = 10_000;
/** Matches `<session id>~<mark>`. Session ids do not contain a tilde. */
const TAKEN = /^([^~]+)~([0-9a-f]+)$/;
const INCOMING = /^\.incoming-[0-9a-f]+$/;

async function findRemains(shared: string, host: string): Promise<Remain[]> {
  return await usable(shared, async () => {
    const found: Remain[] = [];
    const folder = join(shared, "hosts", host);
    for (const { name: group } of (await entriesOf(folder)).filter((entry) => entry.isDirectory())) {
      const place = { shared, host, group };
      for (const entry of await entriesOf(join(folder, group))) {
        if (!entry.isDirectory() || !INCOMING.test(entry.name)) continue;
        found.push(...(await remainAt(join(folder, group, entry.name), { kind: "incoming", group })));
      }
      for (const { name } of await entriesOf(join(folder, group, TAKEN_FOLDER))) {
        const [, session, mark] = TAKEN.exec(name) ?? [];
        if (session === undefined || mark === undefined || !isSessionId(session)) continue;
        found.push(...(await remainAt(takenPath(place, session, mark), { kind: "taken", group, session, mark })));
      }
      for (const entry of await entriesOf(placePath(place))) {
        if (!entry.isFile() || !isSessionId(entry.name)) continue;
        const [block] = await remainAt(join(placePath(place), entry.name), {
          kind: "block",
          group,
          session: entry.name,
        });
        // The block of a takeover is an empty file. Leave out any other file, so that nobody deletes it as a block.
        if (block?.bytes === 0) found.push(block);
      }
    }
    return found;
  });
}

/**
 * Removes a leftover file or folder. Returns false if it no longer exists, or if a session has replaced the block. If
 * two processes remove the same `taken` folder at the same time, both may return true.
 */
async function removeRemain(shared: string, { kind, path }: Remain): Promise<boolean> {
  return await usable(shared, async () => {
    if (kind !== "block") {
      // Rename an `incoming` copy before its removal, so that a takeover that still runs never finds a half-removed
      // copy.
      const doomed = kind === "incoming" ? incomingPath(dirname(path)) : path;
      const found = await ifThereLater(async () => await (doomed === path ? lstat(path) : rename(path, doomed)));
      await removeIfThere(doomed);
      return found !== null;
    }
    try {
      await unlink(path); // fails if a new session, which is a folder, has replaced the block
      return true;
    } catch (error) {
      if (["ENOENT", "EISDIR", "EPERM"].includes(systemCode(error) ?? "")) return false;
      throw error;
    }
  });
}

/** Puts back a block that should not have been removed, unless a session or another block is already in its place. */
async function putBlockBack(shared: string, { path }: Remain): Promise<void> {
  await usable(shared, async () => {
    await writeFile(path, "", { flag: "wx", mode: 0o600 }).catch((error: unknown) => {
      if (systemCode(error) !== "EEXIST") throw error;
    });
  });
}

type Named = Pick<Remain, "kind" | "group"> & Partial<Pick<Remain, "session" | "mark">>;

async function remainAt(path: string, { session = null, mark = null, ...named }: Named): Promise<Remain[]> {
  const total = { bytes: 0, changedMs: 0 };
  await measure(path, total, { left: MOST_MEASURED });
  const hasHistory = (await statOf(join(path, HISTORY))) !== null;
  return total.changedMs === 0 ? [] : [{ ...named, session, mark, path, hasHistory, ...total }];
}

/** Ignores entries that vanish during the measurement. */
async function measure(path: string, total: Pick<Remain, "bytes" | "changedMs">, budget: Budget): Promise<void> {
  if (budget.left <= 0) return;
  budget.left -= 1;
  const stat = await statOf(path);
  if (stat === null) return;
  total.changedMs = Math.max(total.changedMs, stat.mtimeMs, stat.ctimeMs);
  if (!stat.isDirectory()) {
    total.bytes += stat.size;
    return;
  }
  for (const { name } of await entriesOf(path)) await measure(join(path, name), total, budget);
}

async function entriesOf(path: string): Promise<Dirent[]> {
  return (await ifThereLater(async () => await readdir(path, { withFileTypes: true }))) ?? [];
}
