import { setTimeout as delay } from "node:timers/promises";
import type { ProviderConfig } from "@github/copilot-sdk";
import type { Config } from "../config/schema.js";
import { isFleetError } from "../errors.js";
import { resolveGitHubToken, tokenSourceFromConfig } from "../models/github-token.js";
import { admits, closedBy, poolDraining } from "../pool/admission.js";
import type { Clients } from "../pool/clients.js";
import type { Pool } from "../pool/pool.js";
import { isRunning, serverIdOf } from "../pool/server.js";
import type { TurnReply } from "../runtime/client/turn.js";
import { ownIdentity } from "../runtime/process-table.js";
import { isLoadedBy, listSessionFolders, readSessionFolder } from "../runtime/session-state.js";
import type { Registry, ServerRecord, SessionRecord, Store } from "../store/store.js";
import { deleteSessionState } from "./delete.js";
import { admit } from "./eviction.js";
import { foundRecord, holders } from "./found.js";
import { newSessionId } from "./ids.js";
import type { HeldLease, Leases } from "./leases.js";
import { noteOpened } from "./loaded.js";
import { type Attachment, OpenSession, type SendOptions, type SessionKeeper } from "./open-session.js";
import type { CreateOptions, OpenOptions } from "./options.js";
import { answer, serverDraining, sessionExists, sessionLocked, sessionLost, sessionNotFound } from "./problems.js";
import { sessionConfig } from "./session-config.js";
import { type Permit, takeTurn } from "./turn-taking.js";
import { type SessionView, viewSession } from "./view.js";

export interface SessionsContext {
  store: Store;
  config: Config;
  env: NodeJS.ProcessEnv;
  pool: Pool;
  clients: Clients;
  leases: Leases;
  /** The configured model provider, or null for GitHub's own models; an echo model is started on first use. */
  provider: () => Promise<ProviderConfig | null>;
}

export interface Exchange {
  reply: TurnReply;
  /** The session after it. */
  session: SessionView;
}

const OPEN_WAIT_MS = 30_000;
const REATTACH_MS = 30_000;
const DRAIN_POLL_MS = 20;

/** Sessions and whose they are. Ownership stands in the store, never in the text of an id. */
export class Sessions implements SessionKeeper {
  readonly #context: SessionsContext;
  /** How each session of this process was opened, for when it has to be loaded again. */
  readonly #opened = new Map<string, OpenOptions>();

  constructor(context: SessionsContext) {
    this.#context = context;
  }

  /**
   * Creates a session and starts the server it goes to if need be. The record is written first: it is what makes the id
   * the user's.
   *
   * @throws FleetError `FLEET_SESSION_EXISTS` whoever has it; `FLEET_SESSIONS_EXHAUSTED`; and as `Pool.serverOf`.
   */
  async create(options: CreateOptions): Promise<OpenSession> {
    const { store } = this.#context;
    const now = new Date().toISOString();
    const id = options.id ?? newSessionId(options.purpose ?? null);
    // What can be refused is refused before anything is started: an id that is taken, a model that cannot be used.
    if ((await store.readSession(id)) !== null) throw sessionExists(id);
    await this.#context.provider();
    const server = await this.serverForNew(options);
    const record: SessionRecord = {
      id,
      owner: options.user,
      purpose: options.purpose ?? null,
      kind: options.members === undefined ? "private" : "collaborative",
      members: [...(options.members ?? [])],
      persistence: options.ephemeral === true ? "ephemeral" : "persistent",
      serverId: server.id,
      model: options.model ?? null,
      createdAt: now,
      lastUsedAt: now,
      ttlMs: options.ttlMs ?? null,
      usedBy: options.ephemeral === true ? ownIdentity() : null,
      turns: 0,
    };
    // The runtime silently goes on with an id that it finds on its disk: look first.
    if (readSessionFolder(server.home, record.id) !== null) throw sessionExists(record.id);
    await store.createSession(record).catch((error: unknown) => {
      // One answer for all: whose it is, is nobody's business.
      throw isFleetError(error, "FLEET_SESSION_EXISTS") ? sessionExists(record.id) : error;
    });
    try {
      return await this.#open(record, server, options);
    } catch (error) {
      // Nobody has used it yet: an id whose creation failed is free again.
      await store.deleteSession(record.id);
      throw error;
    }
  }

  /**
   * Opens a session that the user owns or is a member of again, also after its server was stopped or killed, also if it
   * never had a turn.
   *
   * @throws FleetError `FLEET_SESSION_NOT_FOUND`, the same for one that is not there and one that is somebody else's;
   * `FLEET_SESSION_LOST` when it had turns and its history is gone; `FLEET_SESSIONS_EXHAUSTED`.
   */
  async resume(id: string, options: OpenOptions): Promise<OpenSession> {
    const record = await this.recordFor(id, options.user);
    await this.#context.provider();
    const server = await this.serverFor(record, options);
    const open = await this.#open(record, server, options);
    if (record.persistence === "ephemeral") {
      await this.#context.store.updateSession(id, (draft) => {
        draft.usedBy = ownIdentity();
      });
    }
    return open;
  }

  /**
   * One prompt and its reply, with the session opened for just that. A collaborative session is under a lease from before
   * it is opened until after it is left, so that members get their own answers, in turn, whichever server each is on.
   */
  async exchange(id: string, prompt: string, options: OpenOptions & SendOptions): Promise<Exchange> {
    const record = await this.recordFor(id, options.user);
    await this.#context.provider();
    const { user, signal, waitMs = OPEN_WAIT_MS } = options;
    const under = (lease: HeldLease | undefined) => (lease === undefined ? options : { ...options, lease });
    let marked: ServerRecord | undefined;
    const turn = {
      sessionId: id,
      permit: async ({ always }: { always: boolean }) => await this.permit(record, options, { always, user }),
      server: async (lease: HeldLease | undefined) => {
        marked = await this.serverFor(record, under(lease));
        return marked;
      },
      admitted: async (server: ServerRecord) => await this.admitted(server),
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
      return { reply, session: await this.leave(open, user) };
    });
  }

  /** Leaves an open session. Resolves with what it is afterwards. */
  async leave(open: OpenSession, user: string, options: { park?: boolean } = {}): Promise<SessionView> {
    const { id, persistence } = open.record;
    if (persistence === "persistent" || options.park === true) {
      await open.close(options);
      // A parked session is nobody's for now: its time is up by its TTL, not by the end of this process.
      if (persistence === "ephemeral") {
        await this.#context.store.updateSession(id, (draft) => {
          draft.usedBy = null;
        });
      }
      return await this.get(id, user);
    }
    const before = await this.get(id, user);
    await open.close();
    return { ...before, state: "gone", sizeBytes: 0 };
  }

  /** All sessions, or those a user may use: recorded ones, and those that a user's client made on the user's server. */
  async list(user?: string): Promise<SessionView[]> {
    const { store } = this.#context;
    const [{ servers }, records] = await Promise.all([store.readRegistry(), store.listSessions()]);
    const recorded = new Set(records.map(({ id }) => id));
    const unrecorded = Object.values(servers)
      .filter((server) => server.user !== null && (user === undefined || server.user === user))
      .flatMap((server) => listSessionFolders(server.home).map((id) => ({ server, id })))
      .filter(({ id }) => !recorded.has(id))
      .map(({ server, id }) => foundRecord(server, id));
    const wanted = records.filter((record) => user === undefined || mayUse(record, user));
    const views = [...wanted, ...unrecorded].map((record) => this.#view(record, servers[record.serverId]));
    return (await Promise.all(views)).sort(
      (a, b) => b.lastUsedAt.localeCompare(a.lastUsedAt) || a.id.localeCompare(b.id),
    );
  }

  /** One session of this user. @throws FleetError `FLEET_SESSION_NOT_FOUND`. */
  async get(id: string, user: string): Promise<SessionView> {
    const record = await this.recordFor(id, user);
    return await this.#view(record, (await this.#context.store.readRegistry()).servers[record.serverId]);
  }

  async #view(record: SessionRecord, server: ServerRecord | undefined): Promise<SessionView> {
    const { store, config } = this.#context;
    const pid = server !== undefined && isRunning(server) ? (server.process?.pid ?? null) : null;
    const surroundings = { server, pid, lease: await store.readLease(record.id), ttlMs: config.session.ttlMs };
    return viewSession(record, surroundings);
  }

  /**
   * Deletes sessions for good, one after the other, on disk and in the store. Deleting what is gone is success. With
   * `user`, sessions of others are treated as not there; members may not delete.
   *
   * @throws FleetError `FLEET_SESSION_BUSY` when one is in a turn, `FLEET_SESSION_LOCKED` when one is under a lease,
   * `FLEET_SESSION_AMBIGUOUS`; those before it are gone.
   */
  async delete(ids: readonly string[], user?: string): Promise<string[]> {
    const { store } = this.#context;
    const { servers } = await store.readRegistry();
    for (const id of ids) {
      const lease = await store.readLease(id);
      if (lease !== null) throw sessionLocked(id, lease);
      await this.#deleteOne(id, user, servers);
    }
    return [...ids];
  }

  async #deleteOne(id: string, user: string | undefined, servers: Registry["servers"]): Promise<void> {
    const { store, config } = this.#context;
    const record = await store.readSession(id);
    if (user !== undefined && record !== null && record.owner !== user) return;
    for (const server of holders(Object.values(servers), id, record, user)) {
      await deleteSessionState(server, id, config.health.timeoutMs);
    }
    await store.deleteSession(id);
    this.#opened.delete(id);
  }

  /**
   * The record if the user may use the session; a session found only on the user's own server is recorded now.
   *
   * @throws FleetError `FLEET_SESSION_NOT_FOUND`.
   */
  async recordFor(id: string, user: string): Promise<SessionRecord> {
    const { store } = this.#context;
    const record = await store.readSession(id);
    if (record !== null) {
      if (mayUse(record, user)) return record;
      throw sessionNotFound(id);
    }
    const server = (await store.readRegistry()).servers[serverIdOf(user)];
    if (server === undefined || readSessionFolder(server.home, id) === null) throw sessionNotFound(id);
    const found = foundRecord(server, id);
    try {
      await store.createSession(found);
      return found;
    } catch (error) {
      if (isFleetError(error, "FLEET_SESSION_EXISTS")) return await this.recordFor(id, user); // by another just now
      throw error;
    }
  }

  /** The server that a user's next session is created on, started if need be. */
  async serverForNew({ user, signal }: Pick<CreateOptions, "user" | "signal">): Promise<ServerRecord> {
    const { pool, config } = this.#context;
    const placed =
      config.isolation === "shared"
        ? await pool.sharedServerFor(user, { signal })
        : await pool.serverOf(user, { signal });
    return placed.server;
  }

  /**
   * The server that a recorded session is opened on: its owner's own, or the shared one that has it. Two servers must
   * never have one session in memory, so only who holds its lease, and finds it unloaded, may take it elsewhere.
   */
  async serverFor(record: SessionRecord, options: OpenOptions): Promise<ServerRecord> {
    const { pool, store } = this.#context;
    const { signal, marked } = options;
    if (marked !== undefined && isRunning(marked)) return marked;
    if (record.serverId === serverIdOf(record.owner)) return (await pool.serverOf(record.owner, { signal })).server;
    if (options.lease === undefined) return await pool.shared(record.serverId, { signal });
    const { servers } = await store.readRegistry();
    const holder = Object.values(servers).find(
      (server) => server.isolation === "shared" && isRunning(server) && isLoaded(server, record.id),
    );
    const target = holder ?? (await pool.sharedServerFor(options.user, { signal })).server;
    await options.lease.check();
    if (target.id !== record.serverId) {
      await store.updateSession(record.id, (draft) => {
        draft.serverId = target.id;
      });
    }
    return target;
  }

  async #open(record: SessionRecord, server: ServerRecord, options: OpenOptions): Promise<OpenSession> {
    const attached = await this.#attachTo(record, server, options);
    const { marked: _, ...lasting } = options;
    this.#opened.set(record.id, lasting);
    return new OpenSession(record, attached, this);
  }

  /** Loads the session in a server's memory, within the cap, and attaches this process's connection to it. */
  async #attachTo(record: SessionRecord, server: ServerRecord, options: OpenOptions): Promise<Attachment> {
    for (let target = server; ; ) {
      {
        using _use = await this.#admit(record, target, options);
        // Under the mark: from here on a drain waits for this one. Who had marked it before is waited for already.
        if (options.marked === target || (await this.admitted(target)))
          return await this.#load(record, target, options);
      }
      if (options.signal.aborted) throw serverDraining(target.id);
      await delay(DRAIN_POLL_MS);
      target = await this.serverFor(record, options);
    }
  }

  async #admit({ id }: SessionRecord, server: ServerRecord, options: OpenOptions): Promise<Disposable> {
    const { config, store } = this.#context;
    return await admit(server, id, {
      store,
      answerMs: config.health.timeoutMs,
      maxActive: config.session.maxActive,
      waitMs: options.waitMs ?? OPEN_WAIT_MS,
      signal: options.signal,
    });
  }

  /** The caller has marked its use. */
  async #load(record: SessionRecord, server: ServerRecord, options: OpenOptions): Promise<Attachment> {
    const { store, clients } = this.#context;
    const { id } = record;
    // Looked at only now, under the mark: gc deletes the record first and looks at the marks then.
    if ((await store.readSession(id)) === null) throw sessionNotFound(id);
    const folder = readSessionFolder(server.home, id);
    if (folder?.hasHistory !== true && record.turns > 0) throw sessionLost(record);
    noteOpened(server, id);
    const empty = server.isolation === "shared" ? { mode: "empty" as const, baseDirectory: server.home } : {};
    const connection = await clients.to(server, empty, options.signal);
    const settings = sessionConfig(
      await this.surroundings(server, record.owner, options.signal),
      record,
      options.session,
    );
    const request =
      folder?.hasHistory === true
        ? connection.client.resumeSession(id, settings)
        : connection.client.createSession({ ...settings, sessionId: id });
    return { session: await answer(request, connection, options.signal), connection, server };
  }

  /** What a session gets from the fleet: provider and key, or its owner's GitHub token. */
  async surroundings({ isolation }: Pick<ServerRecord, "isolation">, owner: string, signal: AbortSignal) {
    const { config, env } = this.#context;
    const provider = await this.#context.provider();
    // The runtime takes a session's token or a provider, not both.
    const source = isolation === "shared" && provider === null ? tokenSourceFromConfig(config.auth, owner) : null;
    const gitHubToken = source === null ? null : await resolveGitHubToken(source, { user: owner, env, signal });
    return { config, isolation, gitHubToken, provider };
  }

  async admitted(server: ServerRecord): Promise<boolean> {
    const registry = await this.#context.store.readRegistry();
    const by = closedBy(registry);
    if (by !== null) throw poolDraining(by);
    return admits(registry, server);
  }

  async attach(record: SessionRecord, marked: ServerRecord | null): Promise<Attachment> {
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
    }: { always?: boolean; user?: string } = {},
  ): Promise<Permit | null> {
    if (options.lease !== undefined) return { lease: options.lease, owned: false };
    // A private session needs none, but respects the one that somebody took.
    const free = record.kind === "private" && !always && (await this.#context.store.readLease(record.id)) === null;
    return free ? null : { lease: await this.#takeLease(record.id, user, options), owned: true };
  }

  /** Takes the lease for a turn, or goes on under the one that an outer `lock SESSION -- COMMAND` took. */
  async #takeLease(
    id: string,
    user: string,
    { waitMs, signal }: { waitMs?: number | undefined; signal?: AbortSignal | undefined },
  ): Promise<HeldLease> {
    const { leases, config, env } = this.#context;
    const request = {
      sessionId: id,
      holder: user,
      mayUse: async () => await this.recordFor(id, user),
      ttlMs: config.lock.ttlMs,
      waitMs: waitMs ?? OPEN_WAIT_MS,
      ...(signal === undefined ? {} : { signal }),
    };
    return await leases.enter(request, env);
  }

  async used(id: string): Promise<void> {
    await this.#context.store.updateSession(id, (record) => {
      record.lastUsedAt = new Date().toISOString();
      record.turns += 1;
    });
  }

  async end(id: string): Promise<void> {
    // Under a lease of this very use, if under any: nobody else is asked.
    await this.#deleteOne(id, undefined, (await this.#context.store.readRegistry()).servers);
  }
}

function mayUse(record: SessionRecord, user: string): boolean {
  return record.owner === user || record.members.includes(user);
}

function isLoaded(server: ServerRecord, id: string): boolean {
  return server.process !== null && isLoadedBy(server.home, id, server.process.pid);
}
