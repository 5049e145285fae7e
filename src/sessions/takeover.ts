import { randomBytes } from "node:crypto";
import { mkdir, rename, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { isFleetError, systemCode } from "../base/errors.js";
import { removeIfThere } from "../base/held-folder.js";
import type { SessionRecord } from "../base/session.js";
import type { Config } from "../config/schema.js";
import { assertCopyable, copyBeside, sync } from "../runtime/files/copy-folder.js";
import {
  placePath,
  removeState,
  SHARED_GROUP,
  type StatePlace,
  statOf,
  takenPath,
  usable,
} from "../runtime/files/shared-storage.js";
import { type HostDirectory, sessionMoved } from "../servers/directory.js";
import type { ServerPlacer } from "../servers/placement.js";
import { groupOfServer, groupOfSession, HeldClaim, isHeld, isRunning } from "../servers/server.js";
import { unloadAtOnce } from "../servers/stop.js";
import type { Store } from "../store/store.js";

interface TakeoverContext {
  store: Store;
  config: Config;
  directory: HostDirectory;
  placer: ServerPlacer;
}

/** How often to check whether another process of this host has finished a takeover, in milliseconds. */
const POLL_MS = 50;

/**
 * Takes over the sessions of hosts that are gone, as decision 10 describes
 * (docs/decisions/0010-hosts-by-terms-and-copies.md). If the process is killed, the next process that wants the
 * session, on any host, continues from the same source.
 */
export class Takeover {
  readonly #context: TakeoverContext;
  readonly #underWay = new Map<string, Promise<void>>();

  constructor(context: TakeoverContext) {
    this.#context = context;
  }

  /**
   * Takes a session over, unless this host already has it. Resolves with the session's record.
   *
   * @throws FleetError `FLEET_SESSION_MOVED` when another host has it; the errors of `HostDirectory.whereIs`.
   */
  async settle(record: SessionRecord, signal: AbortSignal): Promise<SessionRecord> {
    const { store, directory } = this.#context;
    for (let seen = record; ; ) {
      if (await directory.has(seen)) return seen;
      const where = await directory.whereIs(seen);
      if (!where.here) throw sessionMoved(seen, where.host);
      await (this.#underWay.get(seen.id) ?? this.#taking(seen));
      if (signal.aborted) throw sessionMoved(seen, null);
      const now = await store.sessions.read(seen.id);
      if (now === null) return seen; // deleted by now: the caller notices that when it opens the session
      seen = now;
    }
  }

  /**
   * Takes over sessions that are due for deletion, so that a gc of this host deletes them. Takes only sessions that no
   * host has and whose owners are placed on this host.
   *
   * @param dueMs a session is due if it was last used before this time, in milliseconds since the epoch
   */
  async settleDue(dueMs: (record: SessionRecord) => number, signal: AbortSignal): Promise<void> {
    const { store, directory } = this.#context;
    // With shared storage, a host that does not run `serve` has no sessions and must not take any.
    if (!directory.isShared || !(await directory.isThere())) return;
    // Skip records that cannot be read, because gc reports them.
    for (const record of await store.sessions.list(() => undefined)) {
      if (Date.parse(record.lastUsedAt) >= dueMs(record) || (await directory.has(record))) continue;
      signal.throwIfAborted();
      try {
        if ((await directory.whereIs(record)).here) await this.settle(record, signal);
      } catch (error) {
        // Another host may be taking this session, or its files may be unreadable. Continue with the other sessions.
        if (!isFleetError(error)) throw error;
      }
    }
  }

  /**
   * If another host once took a session with this id from the group's folder on this host, removes the block that the
   * takeover left.
   */
  async clearPlace(id: string, group: string): Promise<void> {
    const { shared } = this.#context.config.storage;
    const { own } = this.#context.directory;
    if (shared !== null && own !== null) await unblock(id, { shared, host: own, group });
  }

  /**
   * Deletes the files of a session that this host has. Needs no server, because the session's server may not be
   * recorded on this host after a takeover.
   */
  async deleteState(record: SessionRecord): Promise<void> {
    const { config, directory } = this.#context;
    const { shared } = config.storage;
    const { own } = directory;
    if (shared === null || own === null || !(await directory.has(record))) return;
    await removeState(record.id, { shared, host: own, group: groupOfSession(record) });
  }

  async #taking(record: SessionRecord): Promise<void> {
    const taking = this.#take(record).finally(() => this.#underWay.delete(record.id));
    this.#underWay.set(record.id, taking);
    await taking;
  }

  async #take(seen: SessionRecord): Promise<void> {
    const { store, directory } = this.#context;
    const owns = await directory.ownership();
    const { shared } = this.#context.config.storage;
    if (owns === undefined || shared === null) return;
    await directory.assertStorage();
    using held = new HeldClaim();
    const serverId =
      groupOfSession(seen) === SHARED_GROUP ? await this.#context.placer.place(seen.owner) : seen.serverId;
    const taken = await store.sessions.update(seen.id, (draft): SessionRecord | "busy" | null => {
      if (draft.host !== seen.host || draft.term !== seen.term) return null;
      const { from, host } = draft;
      if (host === owns.host && isHeld(from?.taker ?? null)) return "busy";
      const before =
        from ??
        (host === undefined ? null : { host, group: groupOfSession(draft), mark: randomBytes(6).toString("hex") });
      draft.host = owns.host;
      if (owns.term !== undefined) draft.term = owns.term;
      delete draft.from;
      // If this host had the session in an earlier term, the session's files are already here. Keep the recorded
      // server, because it may still have the session loaded.
      if (before === null || (from === undefined && host === owns.host)) return draft;
      draft.serverId = serverId;
      draft.from = { host: before.host, group: before.group, mark: before.mark, taker: held.claim };
      return draft;
    });
    if (taken === "busy") await delay(POLL_MS);
    else if (taken?.from !== undefined) await this.#fetch(taken, taken.from, shared);
  }

  /** @throws FleetError `FLEET_SESSION_MOVED` when another takeover has replaced this one. */
  async #assertOurs({ id, host, term }: SessionRecord, mark: string): Promise<void> {
    const { store, directory } = this.#context;
    const [now, owns] = await Promise.all([store.sessions.read(id), directory.ownership()]);
    const isOurs = now?.host === host && now?.term === term && now?.from?.mark === mark && owns?.term === term;
    if (!isOurs) throw sessionMoved({ id }, null);
    await directory.assertStorage();
  }

  async #fetch(record: SessionRecord, from: NonNullable<SessionRecord["from"]>, shared: string): Promise<void> {
    const { store } = this.#context;
    const { id, host = "" } = record;
    const { mark } = from;
    const source: StatePlace = { shared, host: from.host, group: from.group };
    const settle = async (change: (draft: SessionRecord) => void) =>
      await store.sessions.update(id, (draft) => {
        const isOurs = draft.host === record.host && draft.term === record.term && draft.from?.mark === mark;
        if (isOurs) change(draft);
        return isOurs;
      });
    try {
      // A server of this host may still have an old copy of the session in memory, from an earlier term.
      await unloadFromGroup(groupOfSession(record), id, this.#context);
      await fetchSession({
        id,
        mark,
        from: source,
        to: { shared, host, group: groupOfSession(record) },
        hasHistory: record.turns > 0,
        check: async () => await this.#assertOurs(record, mark),
      });
    } catch (error) {
      await settle((draft) => {
        draft.from = { ...from, taker: null };
      });
      throw error;
    }
    const isDone = await settle((draft) => {
      delete draft.from;
    });
    if (isDone) await forgetTaken({ id, mark, from: source });
  }
}

/** Makes the servers that use the group's folder unload the session. */
export async function unloadFromGroup(
  group: string,
  sessionId: string,
  { store, config }: { store: Store; config: Config },
): Promise<void> {
  const { servers } = await store.registry.read();
  const near = Object.values(servers).filter((server) => groupOfServer(server) === group && isRunning(server));
  for (const server of near) await unloadAtOnce(server, [sessionId], config.health.timeoutMs);
}

/**
 * How many times to try to replace a session's folder with a block (a plain file). A try fails if a runtime recreates
 * the folder first.
 */
const BLOCK_TRIES = 20;

export interface Fetch {
  id: string;
  /** A unique id of this takeover, so that it never uses files that an earlier takeover left. */
  mark: string;
  from: StatePlace;
  to: StatePlace;
  /** Whether the session has a history. Its state must then exist in `from`. */
  hasHistory: boolean;
  /** Runs before each step that cannot be undone. Throws if this takeover may no longer fetch the session. */
  check: () => Promise<void>;
}

/**
 * Moves a session's state from one folder to another. If a runtime still has the session loaded at `from`, the
 * runtime's next write fails. A call after a crash continues where the last call stopped. The last step replaces any
 * files of the session that `to` already has.
 *
 * @throws FleetError `FLEET_STORAGE_UNUSABLE` when the storage fails, or when the session has too many files to copy.
 * Also when a session with a history has no files at `from`, because then the storage may not be mounted.
 */
export async function fetchSession({ id, mark, from, to, hasHistory, check }: Fetch): Promise<void> {
  await usable(to.shared, async () => {
    const [source, taken] = [join(placePath(from), id), takenPath(from, id, mark)];
    const isThere = (await statOf(source))?.isDirectory() === true || (await statOf(taken)) !== null;
    if (!isThere && hasHistory) throw new Error(`session ${id} has no files at ${source}`);
    assertCopyable(source);
    await check();
    await block(source, taken);
    const target = placePath(to);
    await mkdir(target, { recursive: true, mode: 0o700 });
    const copy = (await statOf(taken)) === null ? null : await copyBeside(taken, target);
    try {
      await check();
      await removeIfThere(join(target, id));
      await rm(join(target, id), { force: true }); // the block of an earlier takeover
      if (copy !== null) await rename(copy, join(target, id));
      await sync(target);
    } catch (error) {
      if (copy !== null) await rm(copy, { recursive: true, force: true });
      throw error;
    }
  });
}

/**
 * Deletes the original files of a session, which {@link fetchSession} has moved aside. Call this once the copy is
 * complete and recorded.
 */
export async function forgetTaken({ id, mark, from }: Pick<Fetch, "id" | "mark" | "from">): Promise<void> {
  await usable(from.shared, async () => await removeIfThere(takenPath(from, id, mark)));
}

/** Removes the block (a plain file) that a takeover left, so that a new session may have this id. */
export async function unblock(id: string, place: StatePlace): Promise<void> {
  const path = join(placePath(place), id);
  await usable(place.shared, async () => {
    if ((await statOf(path))?.isFile() === true) await rm(path);
  });
}

async function block(path: string, taken: string): Promise<void> {
  for (let attempt = 0; attempt < BLOCK_TRIES; attempt++) {
    const found = await statOf(path);
    if (found?.isDirectory() === true) await setAside(path, taken);
    try {
      await mkdir(dirname(path), { recursive: true, mode: 0o700 });
      await writeFile(path, "", { flag: "wx", mode: 0o600 });
      return;
    } catch (error) {
      if (systemCode(error) !== "EEXIST") throw error;
      if ((await statOf(path))?.isFile() === true) return; // it is already blocked
    }
  }
  throw new Error(`another process keeps creating ${path}`);
}

/**
 * Moves the session's folder from `path` to `taken`. If `taken` exists, an earlier call moved the session, and a
 * runtime then made the folder at `path` again. In that case, removes that folder.
 */
async function setAside(path: string, taken: string): Promise<void> {
  await mkdir(dirname(taken), { recursive: true, mode: 0o700 });
  if ((await statOf(taken)) === null) await rename(path, taken);
  else await removeIfThere(path);
}
