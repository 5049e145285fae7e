import type { CopilotClient, CopilotSession } from "@github/copilot-sdk";
import { parseDuration } from "./config/duration.js";
import { loadConfig } from "./config/load.js";
import type { Address } from "./config/rules.js";
import type { Config } from "./config/schema.js";
import { FleetError, quote } from "./errors.js";
import type {
  ConnectInfo,
  CreateSessionOptions,
  DrainRequest,
  FleetOptions,
  OpenDoorOptions,
  ResumeSessionOptions,
  RollingRequest,
  RouteView,
  SpawnRequest,
  StopRequest,
  SuperviseOptions,
} from "./fleet-options.js";
import type { DoorListeners } from "./gateway/context.js";
import type { FrontDoor } from "./gateway/door.js";
import {
  type IssuedToken,
  issueToken,
  listTokens,
  revokeTokens,
  type TokenView,
  validateTokenId,
} from "./gateway/tokens.js";
import { type OpenedProvider, openProvider } from "./models/provider.js";
import { closePool, launchesOf, openPool } from "./pool/admission.js";
import { type ClientOptions, Clients } from "./pool/clients.js";
import { Pool, type SpawnOptions, type Strategy } from "./pool/pool.js";
import { type RollingResult, restartRolling } from "./pool/rolling.js";
import { isBroken, type ServerView, viewServer } from "./pool/server.js";
import type { StopOptions, Stopped } from "./pool/stopping.js";
import type { TurnReply } from "./runtime/client/turn.js";
import { provenEndpoint } from "./runtime/probe.js";
import type { Supervisor } from "./serve/supervisor.js";
import { type EvictionResult, evict } from "./sessions/eviction.js";
import { collectGarbage, type GcRequest, type GcResult } from "./sessions/gc.js";
import { newSessionId, validateSessionId, validateUser } from "./sessions/ids.js";
import { acquireOptions, type LockOptions } from "./sessions/lease-options.js";
import { type AcquireOptions, type HeldLease, Leases } from "./sessions/leases.js";
import type { OpenSession, SendOptions } from "./sessions/open-session.js";
import type { SessionOptions } from "./sessions/session-config.js";
import { type Exchange, Sessions } from "./sessions/sessions.js";
import type { SessionView } from "./sessions/view.js";
import { checkStateFolder } from "./store/file/state-folder.js";
import { openStore } from "./store/open.js";
import type { Lease, Store } from "./store/store.js";

const START_WAIT_MS = 30_000;
const NEVER = new AbortController().signal;
const ANY_ADDRESS: Address = { host: "127.0.0.1", port: 0 };

/**
 * The fleet of one state folder: the same servers, sessions and rules as the command of this name. Any number of
 * processes may have it open at once.
 *
 * Closing it (`await using`, or {@link Fleet.close}) ends this process's connections; servers and sessions stay.
 */
export class Fleet implements AsyncDisposable {
  /** The configuration in force. */
  readonly config: Config;
  /** The folder with all state. */
  readonly stateRoot: string;
  readonly #store: Store;
  readonly #pool: Pool;
  readonly #clients = new Clients();
  readonly #sessions: Sessions;
  readonly #leases: Leases;
  readonly #open = new Map<string, OpenSession>();
  #provider: Promise<OpenedProvider> | undefined;
  readonly #env: NodeJS.ProcessEnv;

  private constructor(config: Config, stateRoot: string, env: NodeJS.ProcessEnv) {
    this.config = config;
    this.stateRoot = stateRoot;
    this.#env = env;
    this.#store = openStore(config.store.kind === "file" ? "file" : config.store.url, stateRoot);
    this.#pool = new Pool({ store: this.#store, config, stateRoot, env });
    this.#leases = new Leases(this.#store);
    this.#sessions = new Sessions({
      store: this.#store,
      config,
      env,
      leases: this.#leases,
      pool: this.#pool,
      clients: this.#clients,
      provider: async () => (await this.#openedProvider()).provider,
    });
  }

  /**
   * Opens the fleet that the environment and the configuration files name. Starts nothing and writes nothing.
   *
   * @throws FleetError `FLEET_CONFIG_…`, `FLEET_STATE_UNSAFE`.
   */
  static async open(options: FleetOptions = {}): Promise<Fleet> {
    const env = options.env ?? process.env;
    const { config, stateRoot } = loadConfig({
      env,
      cwd: options.cwd ?? process.cwd(),
      ...(options.config === undefined ? {} : { flags: options.config }),
    });
    checkStateFolder(stateRoot);
    return new Fleet(config, stateRoot, env);
  }

  /**
   * The user's own server, started if it does not run.
   *
   * @throws FleetError among others `FLEET_USER_INVALID`, `FLEET_PORTS_EXHAUSTED`, `FLEET_SERVER_START_TIMEOUT`,
   * `FLEET_SERVER_EXITED`, `FLEET_RUNTIME_MISSING`.
   */
  async spawn(user: string, request: SpawnRequest = {}): Promise<{ server: ServerView; created: boolean }> {
    const { server, created } = await this.#pool.serverOf(validateUser(user), spawnOptions(request));
    return { server: viewServer(server), created };
  }

  /** The servers of many users, started side by side. Those that can be started run; the others are in the error, a word on each. */
  async spawnMany(users: readonly string[], request: SpawnRequest = {}): Promise<ServerView[]> {
    const valid = users.map((user) => validateUser(user));
    const results = await this.#pool.serversOf(valid, spawnOptions(request));
    return results.map(({ server }) => viewServer(server));
  }

  /** Starts one more server that belongs to no single user. */
  async spawnShared(request: SpawnRequest = {}): Promise<ServerView> {
    const { server } = await this.#pool.addShared(spawnOptions(request));
    return viewServer(server);
  }

  /** All recorded servers as they are now. What a crash left half-done is mended on the way. */
  async servers(): Promise<ServerView[]> {
    return await this.#pool.list(AbortSignal.timeout(START_WAIT_MS));
  }

  /** How many servers are recorded, in whatever state. */
  async recordedServers(): Promise<number> {
    return Object.keys((await this.#store.readRegistry()).servers).length;
  }

  /** Ids of servers whose record does not agree with the processes there are; {@link Fleet.servers} mends them. */
  async brokenServers(): Promise<string[]> {
    return Object.values((await this.#store.readRegistry()).servers)
      .filter(isBroken)
      .map(({ id }) => id);
  }

  /** The launch ids of all recorded servers: a process of this fleet that carries another one is a stray. */
  async launchIds(): Promise<Set<string>> {
    return launchesOf(await this.#store.readRegistry());
  }

  /** One server by id or unambiguous beginning of it. @throws FleetError `FLEET_SERVER_NOT_FOUND`. */
  async server(id: string): Promise<ServerView> {
    return viewServer(await this.#pool.find(id));
  }

  /**
   * The server that a user's next session goes to, started if it does not run: the user's own, or the shared one by the
   * strategy of the configuration.
   */
  async serverFor(user: string, request: SpawnRequest = {}): Promise<ServerView> {
    const id = validateUser(user);
    const options = spawnOptions(request);
    const placed =
      this.config.isolation === "shared"
        ? await this.#pool.sharedServerFor(id, options)
        : await this.#pool.serverOf(id, options);
    return viewServer(placed.server);
  }

  /** Where a user's next session would go, and why. Starts nothing. */
  async route(user: string, options: { strategy?: Strategy } = {}): Promise<RouteView> {
    const id = validateUser(user);
    const { isolation } = this.config;
    const { serverId, strategy, reason } = await this.#pool.route(id, options.strategy);
    const server = (await this.#store.readRegistry()).servers[serverId];
    return {
      user: id,
      isolation,
      strategy,
      serverId,
      reason,
      server: server === undefined ? null : viewServer(server),
    };
  }

  /** The recorded server of a user. @throws FleetError `FLEET_SERVER_NOT_FOUND`. */
  async serverOf(user: string): Promise<ServerView> {
    return viewServer(await this.#pool.findOf(validateUser(user)));
  }

  /** Waits for turns in flight, stops the servers, frees their ports. Homes and sessions stay. */
  async stop(ids: readonly string[], request: StopRequest = {}): Promise<Stopped[]> {
    return await this.#stop(ids, this.#stopOptions(request));
  }

  async #stop(ids: readonly string[], options: StopOptions): Promise<Stopped[]> {
    const stopped = await this.#pool.stopAll(ids, options);
    // Only now: closing a client ends its turns, which are waited for like everybody else's.
    for (const id of ids) await this.#closeClient(id);
    return stopped;
  }

  /** {@link stop}, then the same servers again on the same homes and, where still free, the same ports. */
  async restart(
    ids: readonly string[],
    request: StopRequest = {},
  ): Promise<{ stopped: Stopped[]; servers: ServerView[] }> {
    const stopped = await this.#stop(ids, { ...this.#stopOptions(request), stays: true });
    const servers = await Promise.all(
      ids.map(async (id) => {
        const signal = AbortSignal.timeout(START_WAIT_MS);
        const again = await this.#pool.startAgain(await this.#pool.find(id), { signal });
        return viewServer(again.server);
      }),
    );
    return { stopped, servers };
  }

  /**
   * Replaces running servers one after the other, at most `maxUnavailable` at a time and the first one alone: each by a new
   * process on the same home, which has to answer before the old one is drained. This is the upgrade to a new runtime.
   * Stops at the first server whose new process does not come up; that one and those after it go on as they were.
   *
   * @throws FleetError with the code of that failure, and a word on how far it came.
   */
  async restartRolling(ids: readonly string[], request: RollingRequest = {}): Promise<RollingResult> {
    const { drainTimeoutMs, signal } = this.#stopOptions(request);
    return await restartRolling(this.#pool, ids, {
      drainTimeoutMs,
      signal,
      maxUnavailable: request.maxUnavailable ?? 1,
    });
  }

  /**
   * Closes the pool to everything new, on this host and for every process, waits for turns in flight, and stops all
   * servers; those that run now run again when a supervisor starts. {@link undrain} opens the pool again, and so does a
   * supervisor that starts.
   *
   * @throws FleetError `FLEET_DURATION_INVALID`.
   */
  async drain(request: DrainRequest = {}): Promise<Stopped[]> {
    const { timeout, ...rest } = request;
    const timeoutMs = timeout === undefined ? {} : { drainTimeoutMs: parseDuration(timeout, { name: "timeout" }) };
    await closePool(this.#store);
    const ids = (await this.#pool.all()).map(({ id }) => id);
    return await this.#stop(ids, { ...this.#stopOptions({ ...rest, ...timeoutMs }), stays: true });
  }

  /** Opens a pool that was drained. */
  async undrain(): Promise<void> {
    await openPool(this.#store);
  }

  /**
   * Keeps the servers of this host healthy from now on, until the supervisor is told to drain or to leave: see
   * {@link Supervisor}. The command `serve` is this and little else.
   *
   * @throws FleetError `FLEET_SUPERVISOR_RUNNING`, `FLEET_ADDRESS_TAKEN`, `FLEET_ADDRESS_UNUSABLE`.
   */
  async supervise(options: SuperviseOptions): Promise<Supervisor> {
    // Loaded only now: every other command is faster without it.
    const { supervise } = await import("./serve/supervise.js");
    const { config, stateRoot } = this;
    const { listen = config.serve.listen } = options;
    const openDoor =
      listen === null
        ? null
        : async (door: DoorListeners & { signal: AbortSignal }) => await this.openFrontDoor({ ...door, listen });
    const gc = async (signal: AbortSignal) => await this.gc({ signal });
    const fleet = { store: this.#store, pool: this.#pool, config, stateRoot, log: options.log, gc, openDoor };
    return await supervise(fleet, options.signal ?? NEVER);
  }

  /**
   * What an SDK client in any language needs to use the user's running server directly. The process behind the port is
   * proved to be the server first.
   *
   * @throws FleetError `FLEET_SERVER_NOT_FOUND`, `FLEET_SERVER_LOST`.
   */
  async connectInfo(user: string): Promise<ConnectInfo> {
    const server = await this.#pool.findOf(validateUser(user));
    const { address, port, token } = provenEndpoint(server);
    return { url: `${address}:${port}`, token, user: server.user ?? user, serverId: server.id };
  }

  /**
   * The SDK's client, connected to the user's own server, which is started if need be. Calling it again gives the same
   * client while it is connected. `gitHubToken` is the token the server starts with; it is handed to the process and
   * recorded nowhere.
   */
  async clientForUser(user: string, options: ClientOptions & { signal?: AbortSignal } = {}): Promise<CopilotClient> {
    const { gitHubToken, signal = AbortSignal.timeout(START_WAIT_MS), ...client } = options;
    const token = gitHubToken === undefined ? {} : { token: { from: "caller" } as const, tokenValue: gitHubToken };
    const { server } = await this.#pool.serverOf(validateUser(user), { ...token, signal });
    return (await this.#clients.to(server, client, signal)).client;
  }

  /** The end of `clientForUser`: once all turns are done, stops the user's server and closes the client. */
  async releaseUser(user: string, request: StopRequest = {}): Promise<Stopped> {
    const { id } = await this.#pool.findOf(validateUser(user));
    const stopped = await this.#pool.stop(id, this.#stopOptions(request));
    await this.#closeClient(id);
    return stopped;
  }

  /**
   * Creates a session that belongs to the user, on the user's own server, which is started if need be. Settings of the
   * SDK's `createSession` can be given too; the fleet's configuration fills in provider, model and permissions.
   *
   * @throws FleetError `FLEET_SESSION_EXISTS`, whoever has that id.
   */
  async createSession(options: CreateSessionOptions): Promise<CopilotSession> {
    const { user, sessionId, purpose, ttl, signal, model, members, ephemeral, waitMs, ...session } = options;
    const id = sessionId === undefined ? newSessionId(purpose ?? null) : validateSessionId(sessionId, "sessionId");
    const owner = validateUser(user, "user");
    const open = await this.#sessions.create({
      user: owner,
      id,
      purpose,
      model,
      members: members === undefined ? undefined : validateMembers(members, owner),
      ephemeral,
      waitMs,
      ttlMs: ttl === undefined ? undefined : parseDuration(ttl, { name: "ttl" }),
      session,
      signal: signal ?? AbortSignal.timeout(START_WAIT_MS),
    });
    return this.#remember(open);
  }

  /**
   * Opens a session again: in a new process, after its server was stopped or killed, and also if it never had a turn.
   *
   * @throws FleetError `FLEET_SESSION_NOT_FOUND`: the same answer for a session that is not there and one that belongs to
   * somebody else.
   */
  async resumeSession(sessionId: string, options: ResumeSessionOptions): Promise<CopilotSession> {
    const { user, signal, waitMs, ...session } = options;
    const open = await this.#sessions.resume(validateSessionId(sessionId, "sessionId"), {
      user: validateUser(user, "user"),
      session,
      waitMs,
      signal: signal ?? AbortSignal.timeout(START_WAIT_MS),
    });
    return this.#remember(open);
  }

  /**
   * One turn in a session that this fleet created or resumed. Ends at once if the server does.
   *
   * @throws FleetError `FLEET_TURN_FAILED`, `FLEET_TURN_TIMEOUT`, `FLEET_SERVER_LOST`.
   */
  async send(session: CopilotSession, prompt: string, options: SendOptions = {}): Promise<TurnReply> {
    return await this.#opened(session.sessionId).send(prompt, options);
  }

  /**
   * One prompt and its reply in a session that is opened for just that, and left again. In a collaborative session this
   * is how members on different servers take turns: all of it happens under the lease.
   *
   * @throws FleetError as {@link resumeSession} and {@link send}; `FLEET_SESSION_LOCKED`.
   */
  async exchange(
    sessionId: string,
    prompt: string,
    options: SendOptions & { user: string; session?: SessionOptions },
  ): Promise<Exchange> {
    return await this.#sessions.exchange(validateSessionId(sessionId, "sessionId"), prompt, {
      ...options,
      user: validateUser(options.user, "user"),
      signal: options.signal ?? NEVER,
    });
  }

  /**
   * Leaves a session: it is unloaded when nobody else is attached; its state stays. An ephemeral one is deleted, unless
   * `park` leaves it for the next one who uses it.
   */
  async leaveSession(session: CopilotSession, options: { park?: boolean } = {}): Promise<SessionView> {
    const open = this.#opened(session.sessionId);
    this.#open.delete(session.sessionId);
    return await this.#sessions.leave(open, open.record.owner, options);
  }

  /**
   * Unloads idle sessions from their servers' memory, whoever opened them; their state stays. A session in a turn, under
   * a lease or just being opened is skipped, and says why.
   */
  async evict(what: { ids: readonly string[] } | { max: number }): Promise<EvictionResult> {
    const { servers } = await this.#store.readRegistry();
    const context = { store: this.#store, answerMs: this.config.health.timeoutMs };
    const checked = "ids" in what ? { ids: what.ids.map((id) => validateSessionId(id)) } : what;
    return await evict(Object.values(servers), checked, context);
  }

  /** Sessions of all users, or of one, the latest used first. */
  async sessions(user?: string): Promise<SessionView[]> {
    return await this.#sessions.list(user === undefined ? undefined : validateUser(user));
  }

  /** One session of a user. @throws FleetError `FLEET_SESSION_NOT_FOUND`. */
  async sessionOf(sessionId: string, user: string): Promise<SessionView> {
    return await this.#sessions.get(validateSessionId(sessionId), validateUser(user));
  }

  /** Deletes sessions for good; what is gone already counts as deleted. @throws FleetError `FLEET_SESSION_BUSY`. */
  async deleteSessions(sessionIds: readonly string[], user?: string): Promise<string[]> {
    const ids = sessionIds.map((id) => validateSessionId(id));
    return await this.#sessions.delete(ids, user === undefined ? undefined : validateUser(user));
  }

  /**
   * Runs `work` under the lease on a session, which is renewed meanwhile and released at the end. Before anything that
   * must not happen without it: `await lease.check()`.
   *
   * @throws what `work` throws; FleetError `FLEET_SESSION_LOCKED` when it could not be had, `FLEET_SESSION_NOT_FOUND` for a
   * user who is neither owner nor member, `FLEET_LEASE_LOST` when it was lost meanwhile, whatever `work` made of it.
   */
  async withSessionLock<T>(id: string, options: LockOptions, work: (lease: HeldLease) => Promise<T>): Promise<T> {
    return await this.#leases.hold(this.#acquireOptions(id, options), work);
  }

  /** Takes the lease on a session; it is renewed until it is released or detached. @throws as {@link withSessionLock}. */
  async lockSession(id: string, options: LockOptions): Promise<HeldLease> {
    return await this.#leases.acquire(this.#acquireOptions(id, options));
  }

  /** Ends a lease by its token. @throws FleetError `FLEET_LEASE_LOST` for a wrong one, and one whose lease is over. */
  async unlockSession(sessionId: string, token: string): Promise<void> {
    await this.#store.releaseLease(validateSessionId(sessionId), token);
  }

  /** The lease in force on a session, or null. With `user`: @throws FleetError `FLEET_SESSION_NOT_FOUND`. */
  async leaseOf(sessionId: string, user?: string): Promise<Lease | null> {
    const id = validateSessionId(sessionId);
    if (user !== undefined) await this.#sessions.recordFor(id, validateUser(user));
    return await this.#store.readLease(id);
  }

  /**
   * Deletes sessions past their TTL that nobody uses, on disk and in the store, and clears away what is left of servers.
   * Safe beside itself and any other use of the fleet; killed at any point, the next one finishes.
   *
   * @throws FleetError `FLEET_DURATION_INVALID`, `FLEET_USER_INVALID`.
   */
  async gc(request: GcRequest = {}): Promise<GcResult> {
    return await collectGarbage(
      { store: this.#store, stateRoot: this.stateRoot, pool: this.#pool, answerMs: this.config.health.timeoutMs },
      {
        ttlMs: request.ttl === undefined ? this.config.session.ttlMs : parseDuration(request.ttl, { name: "ttl" }),
        dryRun: request.dryRun ?? false,
        user: request.user === undefined ? undefined : validateUser(request.user),
        signal: request.signal ?? NEVER,
      },
    );
  }

  /**
   * Makes a token with which clients of the user connect to the front door. It is in the result and nowhere else.
   *
   * @param options.ttl how long it is good, such as `30d`; left out: until it is revoked.
   */
  async issueToken(user: string, options: { ttl?: string } = {}): Promise<IssuedToken> {
    const ttlMs = options.ttl === undefined ? null : parseDuration(options.ttl, { name: "ttl" });
    return await issueToken(this.#store, validateUser(user), ttlMs);
  }

  /** The tokens of all users, or of one, that were issued and not revoked. */
  async tokens(user?: string): Promise<TokenView[]> {
    return await listTokens(this.#store, user === undefined ? undefined : validateUser(user));
  }

  /** Revokes tokens by their ids, or all of a user. What is gone already counts as revoked. Resolves with the ids. */
  async revokeTokens(which: { ids: readonly string[] } | { user: string }): Promise<string[]> {
    const checked =
      "ids" in which ? { ids: which.ids.map((id) => validateTokenId(id)) } : { user: validateUser(which.user) };
    return await revokeTokens(this.#store, checked);
  }

  /**
   * Opens the front door in this process: one address at which any Copilot SDK is served with a user's token, as if it were
   * that user's own server. Close it before the fleet.
   *
   * @param options.listen an address, port 0 for any free one, or an inherited descriptor that listens already; left out:
   * `serve.listen` of the configuration
   * @throws FleetError `FLEET_ADDRESS_TAKEN`, `FLEET_ADDRESS_UNUSABLE`.
   */
  async openFrontDoor(options: OpenDoorOptions = {}): Promise<FrontDoor> {
    // Loaded only now: every other command is faster without it.
    const { openFrontDoor } = await import("./gateway/door.js");
    const { listen = this.config.serve.listen ?? ANY_ADDRESS, ...listeners } = options;
    const context = { config: this.config, store: this.#store, sessions: this.#sessions, pool: this.#pool };
    return await openFrontDoor(context, { ...listeners, listen });
  }

  /** Problems with the recorded state that were met and worked around since the last call. */
  takeWarnings(): string[] {
    return this.#store.takeWarnings();
  }

  async close(): Promise<void> {
    const open = [...this.#open.values()];
    this.#open.clear();
    await Promise.all(open.map((session) => session.close()));
    await this.#clients.closeAll();
    if (this.#provider !== undefined) await (await this.#provider).close();
    this.#provider = undefined;
    await this.#store.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #remember(open: OpenSession): CopilotSession {
    this.#open.set(open.session.sessionId, open);
    return open.session;
  }

  #opened(sessionId: string): OpenSession {
    const open = this.#open.get(sessionId);
    if (open !== undefined) return open;
    throw new TypeError(
      `Session ${sessionId} was not opened with this Fleet: call createSession or resumeSession first.`,
    );
  }

  async #closeClient(serverId: string): Promise<void> {
    await this.#clients.close(serverId);
  }

  #openedProvider(): Promise<OpenedProvider> {
    this.#provider ??= openProvider(this.config.provider, this.#env);
    return this.#provider;
  }

  #acquireOptions(id: string, options: LockOptions): AcquireOptions {
    const acquire = acquireOptions(id, options, this.config);
    return { ...acquire, mayUse: () => this.#sessions.recordFor(acquire.sessionId, acquire.holder) };
  }

  #stopOptions(request: StopRequest): StopOptions {
    return {
      drainTimeoutMs: request.drainTimeoutMs ?? this.config.drain.timeoutMs,
      force: request.force ?? false,
      signal: request.signal ?? NEVER,
    };
  }
}

function validateMembers(members: readonly string[], owner: string): string[] {
  const valid = [...new Set(members.map((member) => validateUser(member, "--member")))];
  if (!valid.includes(owner)) return valid;
  throw new FleetError("FLEET_USAGE_INVALID", `--member ${quote(owner)} is the owner: only other users are members.`);
}

function spawnOptions(request: SpawnRequest): SpawnOptions {
  return {
    token: request.token,
    cwd: request.cwd,
    signal: AbortSignal.timeout(request.waitMs ?? START_WAIT_MS),
  };
}
