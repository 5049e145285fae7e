import type { ProviderConfig } from "@github/copilot-sdk";
import type { Config } from "../config/schema.js";
import { compareText } from "../config/values/text.js";
import { type FleetError, isFleetError, quote, systemCode } from "../errors.js";
import type { HostDirectory } from "../hosts/directory.js";
import { sessionMoved } from "../hosts/problems.js";
import type { Takeover } from "../hosts/takeover.js";
import { newSessionId, serverIdOf } from "../model/ids.js";
import type { Lease } from "../model/lease.js";
import type { Registry } from "../model/registry.js";
import type { ServerRecord } from "../model/server.js";
import { mayUse, newSessionRecord, type SessionRecord, type SessionUser } from "../model/session.js";
import { resolveGitHubToken, tokenSourceFromConfig } from "../models/github-token.js";
import { admits, closedBy, poolDraining } from "../pool/admission.js";
import type { Clients } from "../pool/clients.js";
import type { Pool } from "../pool/pool.js";
import { groupOfServer, hasEnded, isRunning } from "../pool/server.js";
import type { TurnReply } from "../runtime/client/turn.js";
import { listSessionFolders, readSessionFolder } from "../runtime/history/session-state.js";
import { ownIdentity } from "../runtime/process/process-table.js";
import type { Store } from "../store/ports.js";
import { serverUnderLease } from "./between-servers.js";
import { deleteSessionState } from "./delete.js";
import { foundRecord, holders, markedRecord, restoredRecord } from "./found.js";
import type { HeldLease, Leases } from "./leases/leases.js";
import type { TurnLease } from "./leases/seen.js";
import { noteOpened } from "./memory/loaded.js";
import type { CreateOptions, OpenOptions } from "./options.js";
import {
  answer,
  isStoreTrouble,
  sessionExists,
  sessionLocked,
  sessionLost,
  sessionNotFound,
  unreleased,
  unseen,
} from "./problems.js";
import { sessionConfig } from "./session-config.js";
import { SessionLimits } from "./session-limits.js";
import { type Attachment, OpenSession, type SendOptions, type SessionKeeper } from "./use/open-session.js";
import { withRoom } from "./use/room.js";
import { type Permit, takeTurn } from "./use/turn-taking.js";
import { type SessionView, viewSession } from "./view.js";

export interface SessionsContext {
  store: Store;
  config: Config;
  env: NodeJS.ProcessEnv;
  pool: Pool;
  clients: Clients;
  leases: Leases;
  directory: HostDirectory;
  takeover: Takeover;
  /** The configured model provider, or null for GitHub's own models. Starts the echo model on its first use. */
  provider: () => Promise<ProviderConfig | null>;
  /** Reports a problem that was worked around. */
  warn: (message: string) => void;
}

export interface Exchange {
  reply: TurnReply;
  /** The session after the turn. */
  session: SessionView;
}

/** How many unrecorded sessions of one home are listed at most. */
const MOST_UNRECORDED = 1_000;
const OPEN_WAIT_MS = 30_000;
const REATTACH_MS = 30_000;

/** Sessions and their owners. The store decides who owns a session, never the text of its id. */
export class Sessions implements SessionKeeper {
  readonly #context: SessionsContext;
  /** The options with which this process opened each session, for loading it again. */
  readonly #opened = new Map<string, OpenOptions>();
  readonly #limits: SessionLimits;

  constructor(context: SessionsContext) {
    this.#context = context;
    this.#limits = new SessionLimits(context);
  }

  /**
   * Creates a session, and starts its server if that does not run. Writes the record first, because the record makes the id
   * the user's.
   *
   * @throws FleetError `FLEET_SESSION_EXISTS` when any user has the id; `FLEET_SESSIONS_EXHAUSTED`, `FLEET_LIMIT_REACHED`;
   * as `Pool.serverOf`.
   */
  async create(options: CreateOptions): Promise<OpenSession> {
    const { store } = this.#context;
    const id = options.id ?? newSessionId(options.purpose ?? null);
    // Before starting anything, refuse an id that is taken and a model that cannot be used.
    if ((await store.sessions.read(id)) !== null) throw sessionExists(id);
    await this.assertRoom(options.user);
    await this.#context.provider();
    const server = await this.serverForNew(options);
    const ephemeralUse = options.ephemeral === true ? ownUse(this.#context.directory) : undefined;
    const place = { serverId: server.id, ...(await this.#context.directory.ownership()) };
    const record = newSessionRecord({ ...options, id, owner: options.user, ephemeralUse }, place);
    // Look first, because the runtime silently continues a session that it finds on its disk under this id.
    if (readSessionFolder(server.home, record.id) !== null) throw sessionExists(record.id);
    await this.record(record);
    try {
      await this.clearPlace(record.id, server);
      return await this.#open(record, server, options);
    } catch (error) {
      await this.discard(record);
      throw error;
    }
  }

  /** @throws FleetError `FLEET_LIMIT_REACHED` when the user can have no more sessions. */
  async assertRoom(owner: string): Promise<void> {
    await this.#limits.assertRoom(owner);
  }

  /** Records a new session. @throws FleetError `FLEET_SESSION_EXISTS` when any user has the id; `FLEET_LIMIT_REACHED`. */
  async record(record: SessionRecord): Promise<void> {
    try {
      await this.#limits.add(record);
    } catch (error) {
      // Everybody gets the same answer, because it must not reveal the owner.
      throw isFleetError(error, "FLEET_SESSION_EXISTS") ? sessionExists(record.id) : error;
    }
  }

  /**
   * Frees the id of a session whose creation failed. Nobody has used that session. Also deletes what its server has left
   * on disk, because that would block the next session with this id. If it cannot be removed now, gc removes it later.
   */
  async discard({ id, serverId }: SessionRecord): Promise<void> {
    const { store, config } = this.#context;
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
   * Opens a session again that the user owns or is a member of. This works even if its server was stopped or killed, and
   * even if the session never had a turn.
   *
   * @throws FleetError `FLEET_SESSION_NOT_FOUND` when it does not exist, and also when it is somebody else's;
   * `FLEET_SESSION_LOST` when it had turns and its history is gone; `FLEET_SESSIONS_EXHAUSTED`.
   */
  async resume(id: string, options: OpenOptions): Promise<OpenSession> {
    const record = await this.recordFor(id, options.user);
    await this.#context.provider();
    const server = await this.serverFor(record, options);
    const open = await this.#open(record, server, options);
    if (record.persistence === "ephemeral") {
      await this.#context.store.sessions.update(id, (draft) => {
        draft.usedBy = ownUse(this.#context.directory);
      });
    }
    return open;
  }

  /**
   * Opens a session for a single prompt and resolves with the reply. A collaborative session is under a lease from before it
   * is opened until after it is left. So all members get their own answers, one after the other, whichever server they use.
   */
  async exchange(id: string, prompt: string, options: OpenOptions & SendOptions): Promise<Exchange> {
    const record = await this.recordFor(id, options.user);
    await this.#context.provider();
    const { user, signal, waitMs = OPEN_WAIT_MS } = options;
    const under = (lease: TurnLease | undefined) => (lease === undefined ? options : { ...options, lease });
    let marked: ServerRecord | undefined;
    const turn = {
      sessionId: id,
      permit: async ({ always }: { always: boolean }) => await this.permit(record, options, { always, user }),
      server: async (lease: TurnLease | undefined) => {
        // Read the record again each time, under the lease: an earlier holder may have moved the session.
        marked = await this.serverFor(await this.recordFor(id, user), under(lease));
        return marked;
      },
      admitted: async (server: ServerRecord) => await this.admitted(server, id),
      unreleased: ({ message }: FleetError) => this.warn(unreleased(id, message)),
      waitMs,
      signal,
    };
    return await takeTurn(turn, async (lease) => {
      const open = await this.resume(id, { ...under(lease), ...(marked === undefined ? {} : { marked }) });
      let reply: TurnReply;
      try {
        reply = await open.turn(prompt, options, lease);
      } catch (error) {
        await open.close();
        throw error;
      }
      return { reply, session: await this.#leaveAnswered(open, user) };
    });
  }

  /** After an answered turn, trouble with the store must not keep the reply from the caller. */
  async #leaveAnswered(open: OpenSession, user: string): Promise<SessionView> {
    try {
      return await this.leave(open, user);
    } catch (error) {
      if (!isStoreTrouble(error)) throw error;
      const { record, server } = open;
      this.warn(unseen(record.id, error.message));
      return this.#viewBeside(record, server, null);
    }
  }

  /** Leaves an open session. Resolves with its view afterwards. */
  async leave(open: OpenSession, user: string, options: { park?: boolean } = {}): Promise<SessionView> {
    const { id, persistence } = open.record;
    if (persistence === "persistent" || options.park === true) {
      await open.close(options);
      // Nobody uses a parked session, so it ends by its TTL and not with this process.
      if (persistence === "ephemeral") {
        await this.#context.store.sessions.update(id, (draft) => {
          draft.usedBy = null;
        });
      }
      return await this.get(id, user);
    }
    let before: SessionView;
    try {
      before = await this.get(id, user);
    } finally {
      await open.close();
    }
    return { ...before, state: "gone", sizeBytes: 0 };
  }

  /**
   * All sessions of this host, or only those that `user` may use. Includes unrecorded sessions that clients made directly on
   * their user's server here.
   */
  async list(user?: string): Promise<SessionView[]> {
    const { store, directory } = this.#context;
    await directory.assertStorage();
    const [{ servers }, records] = await Promise.all([store.registry.read(), store.sessions.list()]);
    const recorded = new Set(records.map(({ id }) => id));
    const unrecorded = Object.values(servers)
      .filter((server) => server.user !== null && (user === undefined || server.user === user))
      .flatMap((server) => this.#unrecorded(server, recorded).map((id) => foundRecord(server, id)));
    const isHere = ({ host }: SessionRecord) => (host ?? directory.own) === directory.own;
    const wanted = records.filter((record) => isHere(record) && (user === undefined || mayUse(record, user)));
    const views = [...wanted, ...unrecorded].map((record) => this.#view(record, servers[record.serverId]));
    return (await Promise.all(views)).sort(
      (a, b) => compareText(b.lastUsedAt, a.lastUsedAt) || compareText(a.id, b.id),
    );
  }

  /** Ids of the unrecorded sessions in a user's home. */
  #unrecorded(server: ServerRecord, recorded: ReadonlySet<string>): string[] {
    const whose = `user ${quote(server.user ?? server.id)}`;
    let ids: string[];
    try {
      ids = listSessionFolders(server.home).filter((id) => !recorded.has(id));
    } catch (error) {
      const code = systemCode(error);
      if (code === undefined) throw error;
      this.warn(`The sessions in the home of ${whose} cannot be read (${code}).`);
      return [];
    }
    if (ids.length <= MOST_UNRECORDED) return ids;
    this.warn(
      `The home of ${whose} has more than ${MOST_UNRECORDED} sessions that the fleet did not make. The list shows ${MOST_UNRECORDED} of them.`,
    );
    return ids.slice(0, MOST_UNRECORDED);
  }

  /** One session that the user may use. @throws FleetError `FLEET_SESSION_NOT_FOUND`. */
  async get(id: string, user: string): Promise<SessionView> {
    const record = await this.recordFor(id, user);
    return await this.#view(record, (await this.#context.store.registry.read()).servers[record.serverId]);
  }

  async #view(record: SessionRecord, server: ServerRecord | undefined): Promise<SessionView> {
    return this.#viewBeside(record, server, await this.#context.store.leases.read(record.id));
  }

  #viewBeside(record: SessionRecord, server: ServerRecord | undefined, lease: Lease | null): SessionView {
    const { config, directory } = this.#context;
    const pid = server !== undefined && isRunning(server) ? (server.process?.pid ?? null) : null;
    return viewSession(record, { server, pid, lease, ttlMs: config.session.ttlMs, own: directory.own });
  }

  /**
   * Deletes sessions for good, one after the other, on disk and in the store. Resolves with those that existed. With
   * `user`, sessions of other owners count as not existing, so members cannot delete a session.
   *
   * @throws FleetError `FLEET_SESSION_BUSY` when a session is in a turn, `FLEET_SESSION_LOCKED` when it is under a lease,
   * `FLEET_SESSION_AMBIGUOUS` when several users have an unrecorded session with its id. The sessions before it are deleted.
   */
  async delete(ids: readonly string[], user?: string): Promise<string[]> {
    const { store } = this.#context;
    const { servers } = await store.registry.read();
    const deleted: string[] = [];
    for (const id of ids) {
      const lease = await store.leases.read(id);
      if (lease !== null) throw sessionLocked(id, lease);
      if (await this.#deleteOne(id, user, servers)) deleted.push(id);
    }
    return deleted;
  }

  /** Resolves with whether there was such a session. */
  async #deleteOne(id: string, user: string | undefined, servers: Registry["servers"]): Promise<boolean> {
    const { store, config, takeover, directory } = this.#context;
    const recorded = await store.sessions.read(id);
    if (user !== undefined && recorded !== null && recorded.owner !== user) return false;
    await directory.assertStorage();
    const record = recorded && (await takeover.settle(recorded, AbortSignal.timeout(OPEN_WAIT_MS)));
    const having = holders(Object.values(servers), id, record, user);
    for (const server of having) await deleteSessionState(server, id, config.health.timeoutMs);
    if (record !== null) await takeover.deleteState(record);
    await store.sessions.delete(id);
    this.#opened.delete(id);
    return recorded !== null || having.length > 0;
  }

  /**
   * The record, if the user may use the session. If the session has no record but is on the user's own server, records it.
   *
   * @throws FleetError `FLEET_SESSION_NOT_FOUND` when the user may not use it, or when it does not exist; `FLEET_STATE_BUSY`
   * when a gc takes too long to decide about it.
   */
  async recordFor(id: string, user: string): Promise<SessionRecord> {
    const { store } = this.#context;
    let record = await store.sessions.read(id);
    const server = record === null ? (await store.registry.read()).servers[serverIdOf(user)] : undefined;
    if (server !== undefined) {
      await this.#context.directory.assertStorage();
      record = await restoredRecord(store, server, id);
    }
    if (record !== null) {
      if (mayUse(record, user)) return record;
      throw sessionNotFound(id);
    }
    if (server === undefined || readSessionFolder(server.home, id) === null) throw sessionNotFound(id);
    const found = { ...foundRecord(server, id), ...(await this.#context.directory.ownership()) };
    try {
      await store.sessions.create(found);
      return found;
    } catch (error) {
      if (isFleetError(error, "FLEET_SESSION_EXISTS")) return await this.recordFor(id, user); // another call was first
      throw error;
    }
  }

  /** The server for a user's next session, which is started if it does not run. */
  async serverForNew({ user, signal }: Pick<CreateOptions, "user" | "signal">): Promise<ServerRecord> {
    const { pool, config, directory } = this.#context;
    await directory.assertStorage();
    const placed =
      config.isolation === "shared"
        ? await pool.sharedServerFor(user, { signal })
        : await pool.serverOf(user, { signal });
    return placed.server;
  }

  /** The record of a session on this host. Brings the session here if no host has it. @throws as `Takeover.settle`. */
  async broughtHere(record: SessionRecord, signal: AbortSignal): Promise<SessionRecord> {
    return await this.#context.takeover.settle(record, signal);
  }

  /** Makes room for a new session on a server here, even if a session with this id was taken from this host. */
  async clearPlace(id: string, server: ServerRecord): Promise<void> {
    await this.#context.takeover.clearPlace(id, groupOfServer(server));
  }

  /**
   * The server on which to open a recorded session: its owner's own server, or the shared server that the record names. Only
   * the holder of its lease may move it. A session that no host has is brought to this host, if it belongs here.
   *
   * @param asked the present record, because an earlier one may name a server that no longer has the session
   */
  async serverFor(asked: SessionRecord, options: OpenOptions): Promise<ServerRecord> {
    const { pool, store, takeover, directory } = this.#context;
    const { signal, marked, lease, user } = options;
    if (marked !== undefined && isRunning(marked)) return marked;
    await directory.assertStorage();
    const record = await takeover.settle(asked, signal);
    if (record.serverId === serverIdOf(record.owner)) return (await pool.serverOf(record.owner, { signal })).server;
    if (lease === undefined) return await pool.shared(record.serverId, { signal });
    return await serverUnderLease(record, { store, pool, user, lease, signal });
  }

  async #open(record: SessionRecord, server: ServerRecord, options: OpenOptions): Promise<OpenSession> {
    const attached = await this.#attachTo(record, server, options);
    // The marked server and the lease belong to this use only.
    const { marked: _marked, lease: _lease, ...lasting } = options;
    this.#opened.set(record.id, lasting);
    return new OpenSession(record, attached, this);
  }

  /**
   * Loads the session into a server's memory, within the cap, and attaches this process's connection to it. If the server
   * ends before it answers, it has not done anything. This then tries once more, with the server that replaces it.
   */
  async #attachTo(record: SessionRecord, server: ServerRecord, options: OpenOptions): Promise<Attachment> {
    try {
      return await this.#attachOnce(record, server, options);
    } catch (error) {
      const isLost = isFleetError(error, "FLEET_SERVER_LOST") || isFleetError(error, "FLEET_SERVER_UNREACHABLE");
      if (!isLost || !(await hasEnded(server)) || options.signal.aborted) throw error;
      return await this.#attachOnce(record, await this.serverFor(record, options), options);
    }
  }

  async #attachOnce(record: SessionRecord, server: ServerRecord, options: OpenOptions): Promise<Attachment> {
    const request = {
      sessionId: record.id,
      server,
      next: async () => await this.serverFor(await this.recordFor(record.id, options.user), options),
      marked: options.marked,
      waitMs: options.waitMs ?? OPEN_WAIT_MS,
      signal: options.signal,
    };
    const load = async (target: ServerRecord) => await this.#load(record, target, options);
    return await withRoom({ ...this.#context, sessions: this }, request, load);
  }

  /** The caller has set the use marker. */
  async #load(record: SessionRecord, server: ServerRecord, options: OpenOptions): Promise<Attachment> {
    const { store, clients } = this.#context;
    const { id } = record;
    // Read the record only now, under the use marker, because gc deletes the record first and then looks for markers.
    const current = await markedRecord(store, server, id, options.signal);
    if (current === null) throw sessionNotFound(id);
    // The session may have moved since the caller read its record, even between servers of this host.
    const isHere = current.serverId === server.id && (await this.#context.directory.has(current));
    if (!isHere) throw sessionMoved(current, null);
    await this.#context.directory.assertStorage();
    const folder = readSessionFolder(server.home, id);
    if (folder?.hasHistory !== true && record.turns > 0) throw sessionLost(record);
    noteOpened(server, id);
    const empty = server.isolation === "shared" ? { mode: "empty" as const, baseDirectory: server.home } : {};
    const connection = await clients.to(server, empty, options.signal);
    const own = server.isolation === "per-user" && options.user === record.owner;
    const settings = sessionConfig(
      { ...(await this.surroundings(server, record.owner, options.signal)), own },
      record,
      options.session,
    );
    const request =
      folder?.hasHistory === true
        ? connection.client.resumeSession(id, settings)
        : connection.client.createSession({ ...settings, sessionId: id });
    return { session: await answer(request, connection, options.signal), connection, server };
  }

  /** The settings that a session gets from the fleet: provider and key, or its owner's GitHub token. */
  async surroundings({ isolation }: Pick<ServerRecord, "isolation">, owner: string, signal: AbortSignal) {
    const { config, env } = this.#context;
    const provider = await this.#context.provider();
    // The runtime accepts a token or a provider for a session, but not both.
    const source = isolation === "shared" && provider === null ? tokenSourceFromConfig(config.auth, owner) : null;
    const gitHubToken = source === null ? null : await resolveGitHubToken(source, { user: owner, env, signal });
    return { config, isolation, gitHubToken, provider };
  }

  async has({ id }: SessionRecord): Promise<boolean> {
    const { store, directory } = this.#context;
    // Sessions cannot change hosts without shared storage, so there is nothing to read.
    if (!directory.isShared) return true;
    await directory.assertStorage();
    const current = await store.sessions.read(id);
    return current !== null && (await directory.has(current));
  }

  async admitted(server: ServerRecord, id: string): Promise<boolean> {
    const { store } = this.#context;
    const registry = await store.registry.read();
    const by = closedBy(registry);
    if (by !== null) throw poolDraining(by);
    if (!admits(registry, server)) return false;
    // Sessions never move away from a user's own server.
    if (server.isolation === "per-user") return true;
    const record = await store.sessions.read(id);
    return record === null || record.serverId === server.id;
  }

  async attach(record: SessionRecord, marked: ServerRecord | null): Promise<Attachment> {
    // A session object may outlive its fleet. Do not start anything for it then.
    this.#context.clients.assertOpen();
    const opened = this.#opened.get(record.id);
    const signal = AbortSignal.timeout(REATTACH_MS);
    const current = await this.recordFor(record.id, opened?.user ?? record.owner);
    const options = { ...opened, user: opened?.user ?? record.owner, signal, ...(marked === null ? {} : { marked }) };
    return await this.#attachTo(current, await this.serverFor(current, options), options);
  }

  async permit(
    record: SessionRecord,
    options: SendOptions,
    {
      always = false,
      user = this.#opened.get(record.id)?.user ?? record.owner,
      fence,
    }: { always?: boolean; user?: string; fence?: number | undefined } = {},
  ): Promise<Permit | null> {
    this.#context.clients.assertOpen();
    if (fence !== undefined) return { lease: await this.#context.leases.see(record.id, fence, user), owned: true };
    if (options.lease !== undefined) return { lease: options.lease, owned: false };
    const { waitMs = OPEN_WAIT_MS, signal } = options;
    const ambient = await this.#context.leases.ambient.turn(record.id, user, { waitMs, signal });
    if (ambient !== null) return { lease: ambient, owned: true };
    // A private session does not need a lease, but respects one that somebody took.
    const free = record.kind === "private" && !always && (await this.#context.store.leases.read(record.id)) === null;
    return free ? null : { lease: await this.#takeLease(record.id, user, options), owned: true };
  }

  /** Takes the lease for a turn, or continues under the one that an outer `lock SESSION -- COMMAND` took. */
  async #takeLease(
    id: string,
    user: string,
    { waitMs, signal, onWait }: Pick<SendOptions, "waitMs" | "signal" | "onWait">,
  ): Promise<HeldLease> {
    const { leases, store, config, env } = this.#context;
    const request = {
      sessionId: id,
      holder: user,
      mayUse: async () => await this.recordFor(id, user),
      ttlMs: turnLeaseMs(config, store),
      waitMs: waitMs ?? OPEN_WAIT_MS,
      // A caller that sets a wait may know that another process is about to release the lease.
      refuseOwn: waitMs === undefined,
      ...(onWait === undefined ? {} : { onWait }),
      ...(signal === undefined ? {} : { signal }),
    };
    return await leases.enter(request, env);
  }

  async used(id: string): Promise<void> {
    const { store } = this.#context;
    try {
      await store.sessions.update(id, (record) => {
        record.lastUsedAt = new Date().toISOString();
        record.turns += 1;
      });
    } catch (error) {
      // Its user deleted the session right after the turn, so there is nothing left to record.
      if (!isFleetError(error, "FLEET_SESSION_NOT_FOUND")) throw error;
    }
  }

  warn(message: string): void {
    this.#context.warn(message);
  }

  async end(id: string): Promise<void> {
    // Do not check for a lease: if there is one, it belongs to this use.
    await this.#deleteOne(id, undefined, (await this.#context.store.registry.read()).servers);
  }
}

/** This process, as the user of a session. */
export function ownUse({ own }: HostDirectory): SessionUser {
  return own === null ? ownIdentity() : { ...ownIdentity(), at: own };
}

/**
 * The TTL of the lease for one turn, in milliseconds. The lease is renewed while the turn lasts. In a fleet on several
 * hosts, it is never longer than the time after which a silent host counts as gone, so that the host that takes over the
 * session can continue in it.
 */
function turnLeaseMs({ lock, host }: Config, { hosts }: Store): number {
  return hosts === null ? lock.ttlMs : Math.min(lock.ttlMs, host.ttlMs);
}
