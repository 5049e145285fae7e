import { randomBytes } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import type { Config } from "../config/schema.js";
import { isFleetError } from "../errors.js";
import { HeldClaim, isHeld } from "../pool/held-claim.js";
import { groupOfServer, groupOfSession, isRunning } from "../pool/server.js";
import { unloadAtOnce } from "../pool/unload.js";
import {
  fetchSession,
  forgetTaken,
  removeState,
  SHARED_GROUP,
  type StatePlace,
  unblock,
} from "../runtime/shared-storage.js";
import type { SessionRecord, Store } from "../store/store.js";
import type { HostDirectory } from "./directory.js";
import { sessionMoved } from "./problems.js";

export interface TakeoverContext {
  store: Store;
  config: Config;
  directory: HostDirectory;
  /** The shared server here that the user's sessions go to; starts nothing. */
  sharedServerId: (user: string) => Promise<string>;
}

/** How often another process of this host that is at it is looked at, in milliseconds. */
const POLL_MS = 50;

/**
 * Brings sessions to this host that nobody has any more, so that at any moment at most one host may open each:
 *
 * 1. The record names this host, if it is still as it was seen. From here on the session is this host's to fetch.
 * 2. What the last host had of it is set aside there, and copied here (`runtime/shared-storage.ts`).
 * 3. The record says that it is here.
 *
 * Killed anywhere in between, the next one who wants it, here or on another host, goes on from the same source.
 */
export class Takeover {
  readonly #context: TakeoverContext;
  readonly #underWay = new Map<string, Promise<void>>();

  constructor(context: TakeoverContext) {
    this.#context = context;
  }

  /**
   * The record of a session that this host has: as it is, or after it was taken.
   *
   * @throws FleetError `FLEET_SESSION_MOVED` when another host has it, `FLEET_HOST_AWAY`, `FLEET_SESSION_STRANDED`,
   * `FLEET_STORAGE_UNUSABLE`.
   */
  async settle(record: SessionRecord, signal: AbortSignal): Promise<SessionRecord> {
    const { store, directory } = this.#context;
    for (let seen = record; ; ) {
      if (await directory.has(seen)) return seen;
      const where = await directory.whereIs(seen);
      if (!where.here) throw sessionMoved(seen, where.host);
      const taking = this.#underWay.get(seen.id) ?? this.#taking(seen);
      await taking;
      if (signal.aborted) throw sessionMoved(seen, null);
      const now = await store.readSession(seen.id);
      if (now === null) return seen; // deleted meanwhile: whoever opens it finds that
      seen = now;
    }
  }

  /**
   * Brings sessions here that nobody has any more and that were last used before a time, so that a gc of this host finds
   * them: those whose owners go to this host.
   *
   * @param dueMs when a session is due, in milliseconds since the epoch, by its record
   */
  async settleDue(dueMs: (record: SessionRecord) => number, signal: AbortSignal): Promise<void> {
    const { store, directory } = this.#context;
    // One that does not serve has no sessions, and gets none.
    if (!directory.isShared || !(await directory.isThere())) return;
    for (const record of await store.listSessions()) {
      if (Date.parse(record.lastUsedAt) >= dueMs(record) || (await directory.has(record))) continue;
      signal.throwIfAborted();
      try {
        if ((await directory.whereIs(record)).here) await this.settle(record, signal);
      } catch (error) {
        // One that another host takes at this moment, or that cannot be had, keeps nobody from the rest.
        if (!isFleetError(error)) throw error;
      }
    }
  }

  /** Removes what a session of this id that was taken from here has left. @param group of the place here */
  async clearPlace(id: string, group: string): Promise<void> {
    const { shared } = this.#context.config.storage;
    const { own } = this.#context.directory;
    if (shared !== null && own !== null) await unblock(id, { shared, host: own, group });
  }

  /** Deletes the state of a session that this host has: of one that was taken no server here need be recorded yet. */
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
      groupOfSession(seen) === SHARED_GROUP ? await this.#context.sharedServerId(seen.owner) : seen.serverId;
    const taken = await store.updateSession(seen.id, (draft): SessionRecord | "busy" | null => {
      if (draft.host !== seen.host || draft.term !== seen.term || draft.released !== seen.released) return null;
      const { from, host } = draft;
      if (host === owns.host && isHeld(from?.taker ?? null)) return "busy";
      const before = from ?? (host === undefined ? null : { host, group: groupOfSession(draft), mark: newMark() });
      draft.host = owns.host;
      if (owns.term !== undefined) draft.term = owns.term;
      delete draft.released;
      delete draft.from;
      // What this host had in an earlier term, and nobody took, is where it was, and may be in its server's memory.
      if (before === null || (from === undefined && host === owns.host)) return draft;
      draft.serverId = serverId;
      draft.from = { host: before.host, group: before.group, mark: before.mark, taker: held.claim };
      return draft;
    });
    if (taken === "busy") await delay(POLL_MS);
    else if (taken?.from !== undefined) await this.#fetch(taken, taken.from, shared);
  }

  /** @throws FleetError `FLEET_SESSION_MOVED` when this host has not, or no more, to fetch the session in this takeover; `FLEET_STORAGE_UNUSABLE`. */
  async #assertOurs({ id, host, term }: SessionRecord, mark: string): Promise<void> {
    const { store, directory } = this.#context;
    const [now, owns] = await Promise.all([store.readSession(id), directory.ownership()]);
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
      await store.updateSession(id, (draft) => {
        const isOurs = draft.host === record.host && draft.term === record.term && draft.from?.mark === mark;
        if (isOurs) change(draft);
        return isOurs;
      });
    try {
      // A server here that had it in an earlier term may have turns in memory that it could not write.
      await this.#unload(record);
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

  async #unload(record: SessionRecord): Promise<void> {
    const { store, config } = this.#context;
    const group = groupOfSession(record);
    const { servers } = await store.readRegistry();
    const near = Object.values(servers).filter((server) => groupOfServer(server) === group && isRunning(server));
    for (const server of near) await unloadAtOnce(server, [record.id], config.health.timeoutMs);
  }
}

/** Names one takeover of one session. */
function newMark(): string {
  return randomBytes(6).toString("hex");
}
