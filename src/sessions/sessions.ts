import { randomUUID } from "node:crypto";
import { setImmediate as yieldToOthers } from "node:timers/promises";
import { FleetError, isFleetError, quote, type Suggestion, systemCode } from "../base/errors.js";
import type { EventLog } from "../base/event.js";
import type { Registry, ServerRecord } from "../base/server.js";
import { type Lease, mayUse, type NewSession, newSessionRecord, type SessionRecord } from "../base/session.js";
import { filesExhausted, isOwnLimit, lacksFiles } from "../base/system/own-limits.js";
import { refuseSuspended } from "../base/usage.js";
import { type LimitSource, limitReached } from "../base/user-limits.js";
import { compareText } from "../base/values/text.js";
import type { Config } from "../config/schema.js";
import { listSessionFolders, readSessionFolder } from "../runtime/history/session-state.js";
import { groupOfServer, hasEnded, isRunning } from "../servers/server.js";
import type { SpawnOptions } from "../servers/start.js";
import { isUnreadable } from "../store/failures.js";
import { refuseErased } from "../store/purges.js";
import type { Store } from "../store/store.js";
import { deleteSessionState } from "./delete.js";
import { type SessionsContext, sessionExists, sessionLocked, warnOfUnreadable } from "./problems.js";
import { LastUses } from "./use/last-uses.js";
import { foundRecord, recordFor, type SessionView, viewSession } from "./view.js";

/** How many unrecorded sessions of one home `list` shows. */
const MOST_UNRECORDED = 1_000;
/** A view reads the folder of its session synchronously. After this many views, other work in the process may run. */
const VIEWS_AT_ONCE = 50;
/** How long to wait for an unfinished takeover, which has to end before the session can be deleted. In milliseconds. */
const TAKEOVER_MS = 30_000;

interface Start extends Pick<SpawnOptions, "signal" | "sharedUntil"> {
  user: string;
}

/**
 * Creates, lists, views and deletes the sessions of this host, whether they are open or not. The store decides who owns
 * a session, and never the text of the session's id.
 *
 * This class sends no prompts. `useSession` opens sessions and takes turns. `OpenSessions` has the sessions that this
 * process has open, on any host. `SessionGroup` in `fleet/` is the public interface to all of them.
 */
export class Sessions {
  readonly context: SessionsContext;
  /** Records the turns that end in this process. The views that this class returns include these turns. */
  readonly lastUses: LastUses;
  readonly limits: SessionLimits;

  constructor(context: SessionsContext) {
    this.context = context;
    this.lastUses = new LastUses(context.store);
    this.limits = new SessionLimits(context);
  }

  /**
   * Records a new session on a server of this host, and starts that server if it does not run. The record reserves the
   * id, so call this before anything else uses the id.
   *
   * @throws FleetError `FLEET_SESSION_EXISTS` if any user has the id; `FLEET_LIMIT_REACHED`; errors of `Pool.serverOf`.
   */
  async recordNew(wanted: NewSession, start: Omit<Start, "user">): Promise<SessionRecord> {
    const { store, directory, takeover } = this.context;
    const { id, owner } = wanted;
    await refuseErased(store, owner);
    // Before a server is started, refuse an id that is taken.
    const there = await store.sessions.read(id);
    if (there !== null) throw sessionExists(id, owner, there);
    await this.limits.assertRoom(owner);
    const server = await this.serverForNew({ ...start, user: owner });
    // Look on the disk, too, because the runtime silently continues a session that it finds there under this id.
    if (readSessionFolder(server.home, id) !== null) throw sessionExists(id, owner, null);
    const record = newSessionRecord(wanted, { serverId: server.id, ...(await directory.ownership()) });
    await this.record(record);
    try {
      await takeover.clearPlace(id, groupOfServer(server));
      return record;
    } catch (error) {
      await this.discard(record).catch(() => "gc deletes it");
      throw error;
    }
  }

  /**
   * Records a new session. @throws FleetError `FLEET_SESSION_EXISTS` when any user has the id; `FLEET_LIMIT_REACHED`.
   */
  async record(record: SessionRecord): Promise<void> {
    try {
      await this.limits.add(record);
    } catch (error) {
      const { id, owner } = record;
      if (!isFleetError(error, "FLEET_SESSION_EXISTS")) throw error;
      throw sessionExists(id, owner, await this.context.store.sessions.read(id));
    }
    noteCreated(this.context.events, record);
  }

  /** Records the model that a client chose when it opened a session, so that later openings use this model. */
  async recordModel({ id, createdAt, model }: SessionRecord, chosen: unknown): Promise<void> {
    if (typeof chosen !== "string" || chosen === model) return;
    await this.context.store.sessions.update(id, (draft) => {
      if (draft.createdAt === createdAt) draft.model = chosen;
    });
  }

  /**
   * Frees the id of a session whose creation failed. Also deletes the session's folder, because it would block the next
   * session with this id, but leaves a folder with a history.
   */
  async discard({ id, serverId }: SessionRecord): Promise<void> {
    const { store, config } = this.context;
    try {
      const server = (await store.registry.read()).servers[serverId];
      if (server === undefined || readSessionFolder(server.home, id)?.hasHistory !== false) return;
      const remove = async () => await deleteSessionState(server, id, config.health.timeoutMs);
      const removeOnceEnded = async () => ((await hasEnded(server)) ? await remove() : undefined);
      await remove()
        .catch(removeOnceEnded)
        .catch(() => "gc removes it");
    } finally {
      await store.sessions.delete(id);
    }
  }

  /**
   * All sessions of this host, or only those that `user` may use. Includes unrecorded sessions, which clients created
   * on their user's own server without the fleet.
   */
  async list(user?: string): Promise<SessionView[]> {
    const { store, directory, warn } = this.context;
    await directory.assertStorage();
    await this.lastUses.flush();
    const recorded = new Set<string>();
    const warnOf = warnOfUnreadable(warn);
    const [{ servers }, records] = await Promise.all([
      store.registry.read(),
      store.sessions.list((id, error) => {
        recorded.add(id);
        warnOf(id, error);
      }),
    ]);
    for (const { id } of records) recorded.add(id);
    const unrecorded = Object.values(servers)
      .filter((server) => server.user !== null && (user === undefined || server.user === user))
      .flatMap((server) => this.#unrecorded(server, recorded).map((id) => foundRecord(server, id)));
    const isHere = ({ host }: SessionRecord) => (host ?? directory.own) === directory.own;
    const wanted = records.filter((record) => isHere(record) && (user === undefined || mayUse(record, user)));
    const views = await this.#views([...wanted, ...unrecorded], servers);
    return views.sort((a, b) => compareText(b.lastUsedAt, a.lastUsedAt) || compareText(a.id, b.id));
  }

  async #views(records: readonly SessionRecord[], servers: Registry["servers"]): Promise<SessionView[]> {
    const views: SessionView[] = [];
    for (let from = 0; from < records.length; from += VIEWS_AT_ONCE) {
      if (from > 0) await yieldToOthers();
      const some = records.slice(from, from + VIEWS_AT_ONCE);
      const leases = await this.context.store.leases.readMany(some.map(({ id }) => id));
      views.push(...some.map((record, at) => this.viewBeside(record, servers[record.serverId], leases[at] ?? null)));
    }
    return views;
  }

  /**
   * The ids for which `isWanted` returns true, among the sessions in {@link list} and the recorded sessions of other
   * hosts. Reads only the records of these sessions, so it costs little if they are few.
   */
  async idsThat(isWanted: (id: string) => boolean, user: string | undefined): Promise<string[]> {
    const { store, directory, warn } = this.context;
    await directory.assertStorage();
    const [{ servers }, all] = await Promise.all([store.registry.read(), store.sessions.ids(null)]);
    const recorded = new Set(all);
    const found: string[] = [];
    for (const id of all.filter(isWanted)) {
      try {
        const record = await store.sessions.read(id);
        if (record !== null && (user === undefined || mayUse(record, user))) found.push(id);
      } catch (error) {
        if (!isUnreadable(error)) throw error;
        warnOfUnreadable(warn)(id, error);
      }
    }
    for (const server of Object.values(servers)) {
      const isSeen = server.user !== null && (user === undefined || server.user === user);
      if (isSeen) found.push(...this.#unrecorded(server, recorded).filter(isWanted));
    }
    return found;
  }

  /** The ids of the unrecorded sessions in a user's home. */
  #unrecorded(server: ServerRecord, recorded: ReadonlySet<string>): string[] {
    const whose = `user ${quote(server.user ?? server.id)}`;
    let ids: string[];
    try {
      ids = listSessionFolders(server.home).filter((id) => !recorded.has(id));
    } catch (error) {
      const code = systemCode(error);
      if (code === undefined) throw error;
      // A limit of this process, such as its open files, is the cause. It may affect all homes, so do not only warn.
      if (isOwnLimit(error)) throw lacksFiles(error) ? filesExhausted(error) : error;
      this.context.warn(`The sessions in the home of ${whose} cannot be read (${code}).`);
      return [];
    }
    if (ids.length <= MOST_UNRECORDED) return ids;
    this.context.warn(
      `The home of ${whose} has more than ${MOST_UNRECORDED} sessions that the fleet did not make. The list shows ${MOST_UNRECORDED} of them.`,
    );
    return ids.slice(0, MOST_UNRECORDED);
  }

  /** One session that the user may use. @throws FleetError `FLEET_SESSION_NOT_FOUND`. */
  async get(id: string, user: string): Promise<SessionView> {
    await this.lastUses.flush(id);
    const record = await recordFor(this.context, id, user);
    return await this.view(record, (await this.context.store.registry.read()).servers[record.serverId]);
  }

  /** The view of the session with this record. `server` is the server that should have the session. */
  async view(record: SessionRecord, server: ServerRecord | undefined): Promise<SessionView> {
    return this.viewBeside(record, server, await this.context.store.leases.read(record.id));
  }

  viewBeside(record: SessionRecord, server: ServerRecord | undefined, lease: Lease | null): SessionView {
    const { config, directory } = this.context;
    const process = server !== undefined && isRunning(server) ? server.process : null;
    return viewSession(record, { server, process, lease, ttlMs: config.session.ttlMs, own: directory.own });
  }

  /**
   * Deletes sessions for good, one after the other, on disk and in the store. Resolves with the ids of the sessions
   * that existed. With `user`, only that owner's sessions count as existing.
   *
   * @throws FleetError `FLEET_SESSION_BUSY` when a session is in a turn, `FLEET_SESSION_LOCKED` when it is under a
   * lease, `FLEET_SESSION_AMBIGUOUS` when several users have an unrecorded session with its id. The sessions before it
   * in `ids` are already deleted then.
   */
  async delete(ids: readonly string[], user?: string): Promise<string[]> {
    const { store } = this.context;
    const { servers } = await store.registry.read();
    const deleted: string[] = [];
    for (const id of ids) {
      const lease = await store.leases.read(id);
      if (lease !== null) throw sessionLocked(id, lease);
      if (await this.#deleteOne(id, user, servers)) deleted.push(id);
    }
    return deleted;
  }

  /** Resolves with true if the session existed. */
  async #deleteOne(
    id: string,
    user: string | undefined,
    servers: Registry["servers"],
    reason: string | null = null,
  ): Promise<boolean> {
    const { store, config, takeover, directory, events } = this.context;
    const recorded = await store.sessions.read(id);
    if (user !== undefined && recorded !== null && recorded.owner !== user) return false;
    await directory.assertStorage();
    const record = recorded && (await takeover.settle(recorded, AbortSignal.timeout(TAKEOVER_MS)));
    const having = holders(Object.values(servers), id, record, user);
    for (const server of having) await deleteSessionState(server, id, config.health.timeoutMs);
    if (record !== null) await takeover.deleteState(record);
    await store.sessions.delete(id);
    const existed = recorded !== null || having.length > 0;
    if (existed) events.note({ type: "session.deleted", user: recorded?.owner ?? user ?? null, sessionId: id, reason });
    return existed;
  }

  /**
   * The server of this host for a user's next session: the user's own server or a shared one, by `isolation`. Starts it
   * if it does not run.
   */
  async serverForNew({ user, ...start }: Start): Promise<ServerRecord> {
    const { pool, config, directory } = this.context;
    await directory.assertStorage();
    const placed =
      config.isolation === "shared" ? await pool.sharedServerFor(user, start) : await pool.serverOf(user, start);
    return placed.server;
  }

  /** Deletes a session whose use has ended. The audit log contains `reason`. */
  async end(id: string, reason: "ephemeral" | "purge" = "ephemeral"): Promise<void> {
    // Do not check for a lease: if there is one, it belongs to this use.
    await this.#deleteOne(id, undefined, (await this.context.store.registry.read()).servers, reason);
  }
}

/**
 * The servers that have a session's state. Unrecorded sessions of several users may have the same id.
 *
 * @throws FleetError `FLEET_SESSION_AMBIGUOUS` when several users have an unrecorded session with this id and no user
 * is given.
 */
function holders(
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
    suggestions: found.map((server): Suggestion => `copilotfleet delete ${id} --user ${server.user}`),
  });
}

type Shared = Pick<SessionRecord, "id" | "owner" | "serverId" | "members">;

/** Adds to the audit log that a session was created, and with whom it is shared. */
function noteCreated(events: EventLog, record: Shared): void {
  const { id, owner, serverId, members } = record;
  events.note({ type: "session.created", user: owner, sessionId: id, serverId });
  if (members.length > 0) noteShared(events, record);
}

/** Adds to the audit log with whom the owner now shares a session. */
export function noteShared(events: EventLog, { id, owner, members }: Omit<Shared, "serverId">): void {
  const detail = members.length === 0 ? "with nobody" : `with ${members.join(", ")}`;
  events.note({ type: "session.shared", user: owner, sessionId: id, detail });
}

/** A limit on new sessions of `owner`. */
interface Limit {
  owner: string;
  most: number;
  source: LimitSource;
}

/** Enforces the limits on the number of sessions, for all processes and hosts that share the store. */
class SessionLimits {
  readonly #store: Store;
  readonly #events: EventLog;
  readonly #limits: Config["limits"];

  constructor({ store, events, config }: { store: Store; events: EventLog; config: Config }) {
    this.#store = store;
    this.#events = events;
    this.#limits = config.limits;
  }

  /** @throws FleetError `FLEET_LIMIT_REACHED` when the user may have no more sessions; `FLEET_USER_SUSPENDED`. */
  async assertRoom(owner: string): Promise<void> {
    const limit = await this.#limitOf(owner);
    if (limit !== null && (await this.#store.sessions.count(owner)) >= limit.most) throw await this.#reached(limit);
  }

  /**
   * Records a new session. Before that, takes a slot under each limit, so that sessions that are created at the same
   * moment count each other.
   *
   * @throws FleetError `FLEET_LIMIT_REACHED`; the errors of `SessionStore.create`.
   */
  async add(record: SessionRecord): Promise<void> {
    const { limits } = this.#store;
    const limit = await this.#limitOf(record.owner);
    if (limit === null) {
      await this.#store.sessions.create(record);
      return;
    }
    const slot = { user: record.owner, kind: "session", id: `${record.id}~${randomUUID()}` } as const;
    const answer = await limits.take({ ...slot, most: limit.most, perMinute: null });
    if (!answer.granted) throw await this.#reached(limit);
    try {
      await this.#store.sessions.create(record);
    } finally {
      await limits.giveBack(slot, true);
    }
  }

  /** The limit that applies to a new session of the user. */
  async #limitOf(owner: string): Promise<Limit | null> {
    const record = await this.#store.limits.read(owner);
    refuseSuspended(record);
    const { effectiveLimits } = await import("../accounts/limits.js");
    const { limits, sources } = effectiveLimits(this.#limits, record);
    return limits.sessions === null ? null : { owner, most: limits.sessions, source: sources.sessions };
  }

  async #reached({ owner, most, source }: Limit): Promise<FleetError> {
    const { LimitEvents } = await import("../accounts/limits.js");
    LimitEvents.of({ events: this.#events, store: this.#store }).reached(owner, "sessions", most);
    return limitReached("sessions", most, { source });
  }
}
