import type { CopilotClient, CopilotSession } from "@github/copilot-sdk";
import { type Duration, parseDuration } from "./config/duration.js";
import { loadConfig } from "./config/load.js";
import type { Address } from "./config/rules.js";
import type { Config } from "./config/schema.js";
import { FleetError, isFleetError, option, quote } from "./errors.js";
import { ARGUMENTS, guardMethods, readFleetOptions, readListener } from "./fleet-arguments.js";
import type {
  ConnectInfo,
  CreateSessionOptions,
  DrainRequest,
  Exchange,
  ExchangeOptions,
  FleetOptions,
  OpenDoorOptions,
  Rebalanced,
  RebalanceRequest,
  ResumeSessionOptions,
  RollingRequest,
  RouteView,
  SendOptions,
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
import { HostDirectory } from "./hosts/directory.js";
import { ensureNote, instanceOf, ownHostName, refuseRenamed } from "./hosts/host-note.js";
import { hostAway } from "./hosts/problems.js";
import { planRebalance, type RebalancePlan } from "./hosts/rebalance.js";
import { refuseOtherSettings } from "./hosts/serving-note.js";
import { Takeover } from "./hosts/takeover.js";
import { type OpenedProvider, openProvider } from "./models/provider.js";
import { deleteEverywhere } from "./peers/delete-sessions.js";
import { DoorClients } from "./peers/door-client.js";
import { type FindContext, findRecord, whereItIs } from "./peers/find-session.js";
import { allOf, FleetHosts, type FoundServer, groupByHost } from "./peers/fleet-hosts.js";
import {
  evictDownTo,
  evictEverywhere,
  gatherGarbage,
  gatherServers,
  gatherSessions,
  spawnEverywhere,
  unknownOf,
  viewSessionOf,
  withSessionCounts,
} from "./peers/gather.js";
import type { LogEnd } from "./peers/host-actions.js";
import { moveUsers } from "./peers/move-users.js";
import { OtherHost } from "./peers/other-host.js";
import { lookAtAll, type Overview } from "./peers/overview.js";
import { OwnHost } from "./peers/own-host.js";
import { onAnotherHost, tokenStaysHere } from "./peers/problems.js";
import type { RemoteSession } from "./peers/remote-session.js";
import { RemoteSessions } from "./peers/remote-sessions.js";
import { closePool, launchesOf, liveSupervisor, openPool, type PoolState, poolState } from "./pool/admission.js";
import { type ClientOptions, Clients } from "./pool/clients.js";
import { Pool, type Strategy } from "./pool/pool.js";
import { heldPorts } from "./pool/ports.js";
import { fleetClosed } from "./pool/problems.js";
import type { RollingResult } from "./pool/rolling.js";
import { isBroken, type ServerView, viewServer } from "./pool/server.js";
import type { Stopped } from "./pool/stopping.js";
import type { TurnReply } from "./runtime/client/turn.js";
import { provenEndpoint } from "./runtime/probe.js";
import type { LogPosition } from "./serve/log-tail.js";
import type { Supervisor } from "./serve/supervisor.js";
import type { EvictionResult } from "./sessions/eviction.js";
import type { GcOptions, GcRequest, GcResult } from "./sessions/gc.js";
import { newSessionId, validateSessionId, validateUser } from "./sessions/ids.js";
import { acquireOptions, type LockOptions } from "./sessions/lease-options.js";
import { type AcquireOptions, type HeldLease, Leases } from "./sessions/leases.js";
import type { OpenSession } from "./sessions/open-session.js";
import { sessionsNotFound } from "./sessions/problems.js";
import { PendingReply } from "./sessions/reply.js";
import { Sessions } from "./sessions/sessions.js";
import type { SessionView } from "./sessions/view.js";
import { checkStateFolder } from "./store/file/state-folder.js";
import { openStore } from "./store/open.js";
import type { HostRecord, Lease, ServerRecord, Store } from "./store/store.js";

const START_WAIT_MS = 30_000;
const NEVER = new AbortController().signal;
const ANY_ADDRESS: Address = { host: "127.0.0.1", port: 0 };

/**
 * The fleet of one state folder: the same servers, sessions and rules as the command of this name. Any number of
 * processes may have it open at once.
 *
 * Closing it (`await using`, or {@link Fleet.close}) ends this process's connections; servers and sessions stay. Every method
 * refuses then, with `FLEET_CLOSED`.
 *
 * A duration is a text such as "30s" or a number of milliseconds, wherever one is taken. Nonsense is a usage error.
 */
export class Fleet implements AsyncDisposable {
  /** The configuration in force. */
  readonly config: Config;
  /** The folder with all state. */
  readonly stateRoot: string;
  readonly #store: Store;
  readonly #directory: HostDirectory;
  readonly #takeover: Takeover;
  readonly #pool: Pool;
  readonly #clients = new Clients();
  readonly #sessions: Sessions;
  readonly #leases: Leases;
  /** This host by itself, and all hosts of the fleet. */
  readonly #own: OwnHost;
  readonly #hosts: FleetHosts;
  readonly #remote: RemoteSessions;
  readonly #doors = new DoorClients();
  readonly #open = new Map<string, Opened>();
  readonly #warnings: string[] = [];
  /** Ends what this process serves: front doors, and a supervisor, which comes before its door. Harmless when that has ended. */
  readonly #endings: (() => Promise<unknown>)[] = [];
  #provider: Promise<OpenedProvider> | undefined;
  #closed = false;
  readonly #env: NodeJS.ProcessEnv;

  static {
    const declared: Readonly<Record<GuardedMethod, unknown>> & typeof ARGUMENTS = ARGUMENTS;
    guardMethods(Fleet.prototype, declared, (fleet) => fleet.#assertOpen());
  }

  private constructor(config: Config, stateRoot: string, env: NodeJS.ProcessEnv) {
    this.config = config;
    this.stateRoot = stateRoot;
    this.#env = env;
    this.#store = openFleetStore(config, stateRoot);
    this.#directory = new HostDirectory({ store: this.#store, config });
    const noteHost = () => {
      const { own } = this.#directory;
      if (own !== null) ensureNote(stateRoot, own);
    };
    this.#pool = new Pool({ store: this.#store, config, stateRoot, env, noteHost });
    this.#leases = new Leases(this.#store);
    this.#takeover = new Takeover({
      store: this.#store,
      config,
      directory: this.#directory,
      sharedServerId: async (user) => await this.#pool.sharedServerIdFor(user),
    });
    this.#sessions = new Sessions({
      store: this.#store,
      config,
      env,
      leases: this.#leases,
      pool: this.#pool,
      clients: this.#clients,
      directory: this.#directory,
      takeover: this.#takeover,
      provider: async () => (await this.#openedProvider()).provider,
      warn: (message) => this.#warnings.push(message),
    });
    const base = { store: this.#store, config, env, directory: this.#directory };
    const own = {
      ...base,
      takeover: this.#takeover,
      stateRoot,
      pool: this.#pool,
      clients: this.#clients,
      sessions: this.#sessions,
    };
    this.#own = new OwnHost(own);
    this.#hosts = new FleetHosts({ ...base, own: this.#own, warn: (message) => this.#warnings.push(message) });
    this.#remote = new RemoteSessions({ ...base, sessions: this.#sessions, leases: this.#leases });
  }

  /**
   * Opens the fleet that the environment and the configuration files name. Starts nothing and writes nothing.
   *
   * @throws FleetError `FLEET_CONFIG_…`, also for a store, a host's name or a share that a `serve` which runs on the state folder
   * does not have; `FLEET_STATE_UNSAFE`.
   */
  static async open(options: FleetOptions = {}): Promise<Fleet> {
    readFleetOptions(options, "options");
    const env = options.env ?? process.env;
    const { config, stateRoot } = loadConfig({
      env,
      cwd: options.cwd ?? process.cwd(),
      ...(options.configFile === undefined ? {} : { configFile: options.configFile }),
      ...(options.config === undefined ? {} : { flags: options.config }),
    });
    checkStateFolder(stateRoot);
    refuseOtherSettings(config, stateRoot);
    refuseRenamed(config, stateRoot);
    return new Fleet(config, stateRoot, env);
  }

  /**
   * The user's own server, started if it does not run, on the host that the user is placed on.
   *
   * @throws FleetError among others `FLEET_USER_INVALID`, `FLEET_PORTS_EXHAUSTED`, `FLEET_SERVER_START_TIMEOUT`,
   * `FLEET_SERVER_EXITED`, `FLEET_RUNTIME_MISSING`.
   */
  async spawn(user: string, request: SpawnRequest = {}): Promise<{ server: ServerView; created: boolean }> {
    const id = validateUser(user);
    return await (await this.#hosts.ofUser(id)).spawn(id, request);
  }

  /** The servers of many users, started side by side. Those that can be started run; the others are in the error, a word on each. */
  async spawnMany(users: readonly string[], request: SpawnRequest = {}): Promise<ServerView[]> {
    const valid = users.map((user) => validateUser(user));
    return await spawnEverywhere(this.#hosts, valid, request);
  }

  /** Starts one more server that belongs to no single user, on this host. */
  async spawnShared(request: SpawnRequest = {}): Promise<ServerView> {
    return await this.#own.spawnShared(request);
  }

  /**
   * All recorded servers of all hosts as they are now. What a crash left half-done is mended on the way. A host that does not
   * answer is warned of ({@link takeWarnings}), and its servers are shown as it recorded them last (`away`).
   */
  async servers(): Promise<ServerView[]> {
    const [servers, records] = await Promise.all([gatherServers(this.#hosts), this.#store.listSessions()]);
    return withSessionCounts(servers, records, this.#directory.own);
  }

  /** The hosts of the fleet, also those that are gone; none where the store is one host's alone. */
  async hosts(): Promise<HostRecord[]> {
    return await this.#directory.list();
  }

  /** The names of the hosts of the fleet; none where it is on one. */
  async hostNames(): Promise<string[]> {
    return await this.#hosts.names();
  }

  /** All hosts, their servers, and how many sessions there are. */
  async overview(): Promise<Overview> {
    const { config, stateRoot } = this;
    return await lookAtAll({ ...this.#finding(), config, stateRoot });
  }

  /** How many servers are recorded on this host, in whatever state. */
  async recordedServers(): Promise<number> {
    return Object.keys((await this.#store.readRegistry()).servers).length;
  }

  /** How many sessions are recorded, of all hosts. Reads each record, so that damage is warned of ({@link takeWarnings}). */
  async recordedSessions(): Promise<number> {
    return (await this.#store.listSessions()).length;
  }

  /** Writes the registry again if a file of it is damaged. */
  async repairRegistry(): Promise<void> {
    await this.#store.updateRegistry(() => undefined);
    this.#store.takeWarnings(); // of the damage that is repaired now
  }

  /** Writes each session record again that has a damaged file. */
  async repairSessionRecords(): Promise<void> {
    for (const { id } of await this.#store.listSessions()) {
      await this.#store
        .updateSession(id, () => undefined)
        .catch((error: unknown) => {
          if (!isFleetError(error, "FLEET_SESSION_NOT_FOUND")) throw error; // deleted since the listing
        });
    }
    this.#store.takeWarnings();
  }

  /** Ids of servers of this host whose record does not agree with the processes there are; {@link Fleet.servers} mends them. */
  async brokenServers(): Promise<string[]> {
    return Object.values((await this.#store.readRegistry()).servers)
      .filter(isBroken)
      .map(({ id }) => id);
  }

  /** The launch ids of all recorded servers of this host: a process of this fleet that carries another one is a stray. */
  async launchIds(): Promise<Set<string>> {
    return launchesOf(await this.#store.readRegistry());
  }

  /** Whether the pool of this host takes new servers and turns, and if not, why. */
  async poolState(): Promise<PoolState> {
    return poolState(await this.#store.readRegistry());
  }

  /** The process of the `serve` that supervises this host; null if none runs. */
  async supervisorPid(): Promise<number | null> {
    return liveSupervisor(await this.#store.readRegistry())?.process.pid ?? null;
  }

  /** The ports that the recorded servers of this host hold. */
  async heldPorts(): Promise<Set<number>> {
    return heldPorts(await this.#store.readRegistry());
  }

  /**
   * One server by id or unambiguous beginning of it, on whichever host. A user may have one on several, all with the same id:
   * `ID@HOST` says which.
   *
   * @throws FleetError `FLEET_SERVER_NOT_FOUND`, `FLEET_HOST_AWAY`.
   */
  async server(id: string): Promise<ServerView> {
    return await this.#view(await this.#hosts.find(id));
  }

  /** What a server wrote last to its log, and where to go on from with {@link followLog}. @throws as {@link server}. */
  async logEnd(id: string, lines: number): Promise<LogEnd> {
    const { host, server } = await this.#hosts.find(id);
    return await host.logEnd(server.id, lines);
  }

  /** What is added to a server's log, until the signal. @throws as {@link server}. */
  async *followLog(id: string, at: LogPosition, signal: AbortSignal): AsyncGenerator<Buffer> {
    const { host, server } = await this.#hosts.find(id);
    yield* host.followLog(server.id, at, signal);
  }

  /**
   * The server that a user's next session goes to, started if it does not run: the user's own, or the shared one by the
   * strategy of the configuration.
   */
  async serverFor(user: string, request: SpawnRequest = {}): Promise<ServerView> {
    const id = validateUser(user);
    return await (await this.#hosts.ofUser(id)).serverFor(id, request);
  }

  /**
   * Where a user's next session would go, and why. Starts nothing.
   *
   * @throws FleetError `FLEET_HOST_AWAY` when the host with the user's server does not say how that is.
   */
  async route(user: string, options: { strategy?: Strategy } = {}): Promise<RouteView> {
    const id = validateUser(user);
    const { isolation } = this.config;
    const foreseen = await this.#directory.foresee(id);
    const { hosts } = this.#store;
    const isElsewhere = hosts !== null && foreseen !== null && foreseen.host !== hosts.own;
    const registry = isElsewhere ? await hosts.registryOf(foreseen.host) : await this.#store.readRegistry();
    const on = isElsewhere ? { on: { host: foreseen.host, registry } } : {};
    const { serverId, strategy, reason } = await this.#pool.route(id, { ...options, ...on });
    const server = registry.servers[serverId];
    return {
      user: id,
      isolation,
      strategy,
      host: foreseen?.host ?? null,
      serverId,
      reason: foreseen === null ? reason : `${foreseen.reason}; ${reason}`,
      server:
        server === undefined ? null : isElsewhere ? await this.#viewOn(foreseen.host, server) : viewServer(server),
      pool: poolState(registry),
    };
  }

  /** Which users would move if all were placed anew on the hosts that there are. Moves nobody. */
  async planRebalance(): Promise<RebalancePlan> {
    const [hosts, placements, sessions] = await Promise.all([
      this.#directory.list(),
      this.#store.listPlacements(),
      this.#store.listSessions(),
    ]);
    return planRebalance({ hosts, placements, sessions, isShared: this.#directory.isShared });
  }

  /**
   * Moves users to where {@link planRebalance} says, each session between its turns: what is in a turn is waited for, and stays
   * where it is when that takes too long; it is as good there, and moves another time.
   */
  async rebalance(request: RebalanceRequest = {}): Promise<Rebalanced> {
    const { moves, stays } = await this.planRebalance();
    const waitMs = request.waitMs ?? this.config.drain.timeoutMs;
    return { moved: await moveUsers(moves, waitMs, { store: this.#store, hosts: this.#hosts }), stays };
  }

  /** The recorded server of a user, where the user is placed. @throws FleetError `FLEET_SERVER_NOT_FOUND`, `FLEET_HOST_AWAY`. */
  async serverOf(user: string): Promise<ServerView> {
    return await this.#view(await this.#hosts.findOf(validateUser(user)));
  }

  async #view({ host, server }: FoundServer): Promise<ServerView> {
    return await host.server(server.id);
  }

  /** A server on another host, as it is now. */
  async #viewOn(name: string, { id }: ServerRecord): Promise<ServerView> {
    const host = await this.#hosts.thereUnder(name);
    if (host === null) throw hostAway(name);
    return await host.server(id);
  }

  async #found(ids: readonly string[]): Promise<FoundServer[]> {
    return await Promise.all(ids.map(async (id) => await this.#hosts.find(id)));
  }

  /** Waits for turns in flight, stops the servers, frees their ports, on whichever hosts. Homes and sessions stay. */
  async stop(ids: readonly string[], request: StopRequest = {}): Promise<Stopped[]> {
    const found = await this.#found(ids);
    return (await this.#hosts.onEach(found, async (host, own) => await host.stop(own, request))).flat();
  }

  /** {@link stop}, then the same servers again on the same homes and, where still free, the same ports. */
  async restart(
    ids: readonly string[],
    request: StopRequest = {},
  ): Promise<{ stopped: Stopped[]; servers: ServerView[] }> {
    const found = await this.#found(ids);
    const results = await this.#hosts.onEach(found, async (host, own) => await host.restart(own, request));
    return { stopped: results.flatMap(({ stopped }) => stopped), servers: results.flatMap(({ servers }) => servers) };
  }

  /**
   * Replaces running servers one after the other, at most `maxUnavailable` at a time and the first one alone: each by a new
   * process on the same home, which has to answer before the old one is drained. This is the upgrade to a new runtime.
   * Stops at the first server whose new process does not come up; that one and those after it go on as they were. Of several
   * hosts one comes after the other.
   *
   * @throws FleetError with the code of that failure, and a word on how far it came.
   */
  async restartRolling(ids: readonly string[], request: RollingRequest = {}): Promise<RollingResult> {
    const result: RollingResult = { stopped: [], servers: [] };
    for (const { host, ids: own } of groupByHost(await this.#found(ids))) {
      const { stopped, servers } = await host.restartRolling(own, request);
      result.stopped.push(...stopped);
      result.servers.push(...servers);
    }
    return result;
  }

  /**
   * Closes the pool to everything new, on this host and for every process, waits for turns in flight, and stops all
   * servers; those that run now run again when a supervisor starts. {@link undrain} opens the pool again, and so does a
   * supervisor that starts.
   *
   * @throws FleetError `FLEET_DURATION_INVALID`.
   */
  async drain(request: DrainRequest = {}): Promise<Stopped[]> {
    await closePool(this.#store);
    const ids = (await this.#pool.all()).map(({ id }) => id);
    const { drainTimeoutMs = this.config.drain.timeoutMs, force = false, signal = NEVER } = request;
    return await this.#own.stopAll(ids, { drainTimeoutMs, force, signal, stays: true });
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
    // Each host's serve collects what is its own.
    const gc = async (signal: AbortSignal) => await this.#own.gc(this.#gcOptions({ signal }));
    const [store, pool, directory] = [this.#store, this.#pool, this.#directory];
    const fleet = { store, pool, directory, config, stateRoot, log: options.log, gc, openDoor };
    const supervisor = await supervise(fleet, options.signal ?? NEVER);
    this.#endings.unshift(async () => await supervisor.leave());
    return supervisor;
  }

  /**
   * What an SDK client in any language needs to use the user's running server directly. The process behind the port is
   * proved to be the server first. Servers listen on their own host alone: from another one there is its front door.
   *
   * @throws FleetError `FLEET_SERVER_NOT_FOUND`, `FLEET_SERVER_LOST`; `FLEET_SERVER_UNREACHABLE` for one on another host.
   */
  async connectInfo(user: string): Promise<ConnectInfo> {
    const { host, server } = await this.#hosts.findOf(validateUser(user));
    if (host instanceof OtherHost) throw onAnotherHost(user, host.record);
    const { address, port, token } = provenEndpoint(server);
    return { url: `${address}:${port}`, token, user: server.user ?? user, serverId: server.id };
  }

  /**
   * The SDK's client, connected to the user's own server, which is started if need be. Calling it again gives the same
   * client while it is connected. `gitHubToken` is the token the server starts with; it is handed to the process and
   * recorded nowhere. A user who is placed on another host is connected through that one's front door.
   *
   * @throws FleetError `FLEET_USAGE_INVALID` for a `gitHubToken` that would have to travel to another host.
   */
  async clientForUser(user: string, options: ClientOptions & { signal?: AbortSignal } = {}): Promise<CopilotClient> {
    const { gitHubToken, signal = AbortSignal.timeout(START_WAIT_MS), ...client } = options;
    const token = gitHubToken === undefined ? {} : { token: { from: "caller" } as const, tokenValue: gitHubToken };
    const where = await this.#directory.place(validateUser(user));
    if (!where.here) {
      if (gitHubToken !== undefined) throw tokenStaysHere(user, where.host);
      return await this.#doors.to({ store: this.#store }, where.host, user, client, signal);
    }
    const { server } = await this.#pool.serverOf(user, { ...token, signal });
    return (await this.#clients.to(server, client, signal)).client;
  }

  /** The end of `clientForUser`: once all turns are done, stops the user's server and closes the client. */
  async releaseUser(user: string, request: StopRequest = {}): Promise<Stopped> {
    const { host, server } = await this.#hosts.findOf(validateUser(user));
    const [stopped] = await host.stop([server.id], request);
    await this.#doors.close(user);
    return stopped ?? { id: server.id, outcome: "already-stopped", cut: [] };
  }

  /**
   * Creates a session that belongs to the user, on the user's own server, which is started if need be. Settings of the
   * SDK's `createSession` can be given too; the fleet's configuration fills in provider, model and permissions.
   *
   * @throws FleetError `FLEET_SESSION_EXISTS`, whoever has that id.
   */
  async createSession(options: CreateSessionOptions): Promise<CopilotSession> {
    const { user, sessionId, purpose, ttl, signal, model, members, ephemeral, waitMs, ...session } = options;
    const id = sessionId === undefined ? newSessionId(purpose ?? null) : validateSessionId(sessionId);
    const owner = validateUser(user);
    const create = {
      user: owner,
      id,
      purpose,
      model,
      members: members === undefined ? undefined : validateMembers(members, owner),
      ephemeral,
      waitMs,
      ttlMs: ttl === undefined ? undefined : parseDuration(ttl, { name: option("ttl") }),
      session,
      signal: signal ?? AbortSignal.timeout(START_WAIT_MS),
    };
    const where = await this.#directory.place(owner);
    if (where.here) return this.#remember(await this.#sessions.create(create));
    return this.#rememberRemote(await this.#remote.create(where.host, create, sessionId === undefined), owner);
  }

  /**
   * Opens a session again: in a new process, after its server was stopped or killed, and also if it never had a turn.
   *
   * @throws FleetError `FLEET_SESSION_NOT_FOUND`: the same answer for a session that is not there and one that belongs to
   * somebody else.
   */
  async resumeSession(sessionId: string, options: ResumeSessionOptions): Promise<CopilotSession> {
    const { user, signal, waitMs, ...session } = options;
    const id = validateSessionId(sessionId);
    const open = {
      user: validateUser(user),
      session,
      waitMs,
      signal: signal ?? AbortSignal.timeout(START_WAIT_MS),
    };
    return await whereItIs(this.#finding(), id, user, async (record, where) =>
      where.here
        ? this.#remember(await this.#sessions.resume(id, open))
        : this.#rememberRemote(await this.#remote.resume(record, where.host, open), user),
    );
  }

  /**
   * One turn in a session that this fleet created or resumed. Ends at once if the server does.
   *
   * @throws FleetError `FLEET_TURN_FAILED`, `FLEET_TURN_TIMEOUT`, `FLEET_SERVER_LOST`.
   */
  send(session: CopilotSession, prompt: string, options: SendOptions = {}): PendingReply<TurnReply> {
    return new PendingReply(
      async (onDelta) => await this.#opened(session.sessionId).open.send(prompt, alsoTo(onDelta, options)),
    );
  }

  /**
   * One prompt and its reply in a session that is opened for just that, and left again. In a collaborative session this
   * is how members on different servers take turns: all of it happens under the lease.
   *
   * @throws FleetError as {@link resumeSession} and {@link send}; `FLEET_SESSION_LOCKED`.
   */
  exchange(sessionId: string, prompt: string, options: ExchangeOptions): PendingReply<Exchange> {
    return new PendingReply(async (onDelta) => {
      const id = validateSessionId(sessionId);
      const user = validateUser(options.user);
      const open = { ...alsoTo(onDelta, options), user, signal: options.signal ?? NEVER };
      const { reply, session } = await whereItIs(this.#finding(), id, user, async (record, where) =>
        where.here
          ? await this.#sessions.exchange(id, prompt, open)
          : await this.#remote.exchange(record, where.host, prompt, open),
      );
      return { ...reply, session, reply };
    });
  }

  /**
   * Leaves a session: it is unloaded when nobody else is attached; its state stays. An ephemeral one is deleted, unless
   * `park` leaves it for the next one who uses it.
   */
  async leaveSession(session: CopilotSession, options: { park?: boolean } = {}): Promise<SessionView> {
    const { leave } = this.#opened(session.sessionId);
    this.#open.delete(session.sessionId);
    return await leave(options);
  }

  /**
   * Unloads idle sessions from their servers' memory, whoever opened them; their state stays. A session in a turn, under
   * a lease or just being opened is skipped, and says why; so is one that is not found.
   */
  async evict(what: { ids: readonly string[] } | { max: number }): Promise<EvictionResult> {
    if ("max" in what) return await evictDownTo(this.#hosts, what.max);
    const ids = what.ids.map((id) => validateSessionId(id, option("sessionIds")));
    return await evictEverywhere(this.#finding(), ids);
  }

  /**
   * Sessions of all users, or of one, of all hosts, the latest used first. Of a host that does not answer, which is warned of
   * ({@link takeWarnings}), as their records have them.
   */
  async sessions(user?: string): Promise<SessionView[]> {
    const context = { ...this.#finding(), ttlMs: this.config.session.ttlMs };
    return await gatherSessions(context, user === undefined ? undefined : validateUser(user));
  }

  /** One session of a user. @throws FleetError `FLEET_SESSION_NOT_FOUND`. */
  async sessionOf(sessionId: string, user: string): Promise<SessionView> {
    const context = { ...this.#finding(), ttlMs: this.config.session.ttlMs };
    return await viewSessionOf(context, validateSessionId(sessionId), validateUser(user));
  }

  /**
   * Deletes sessions for good, and resolves with the ids of those that existed. With `user`, a session of somebody else
   * counts as not found.
   *
   * @param options.ignoreNotFound whether a session that is not found is not an error
   * @throws FleetError `FLEET_SESSION_NOT_FOUND` after all others were deleted; `FLEET_SESSION_BUSY`, `FLEET_SESSION_LOCKED`. The
   * error's `outcome` has the ids that were deleted: `{ deleted, notFound }`.
   */
  async deleteSessions(
    sessionIds: readonly string[],
    user?: string,
    options: { ignoreNotFound?: boolean } = {},
  ): Promise<string[]> {
    const ids = sessionIds.map((id) => validateSessionId(id, option("sessionIds")));
    const owner = user === undefined ? undefined : validateUser(user);
    const { deleted, notFound } = await deleteEverywhere(this.#finding(), ids, owner);
    if (notFound.length > 0 && options.ignoreNotFound !== true) throw sessionsNotFound(notFound, { deleted, notFound });
    return deleted;
  }

  /**
   * Runs `work` under the lease on a session, which is renewed meanwhile and released at the end. Turns of the same user in
   * that session that `work` begins ({@link exchange}, {@link send}) are taken under this lease, unless they come with another
   * one. Before anything else that must not happen without it: `await lease.check()`.
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

  /**
   * The lease in force on a session, or null.
   *
   * @throws FleetError `FLEET_SESSION_NOT_FOUND`; with `user` also for a session that this user may not use.
   */
  async leaseOf(sessionId: string, user?: string): Promise<Lease | null> {
    const id = validateSessionId(sessionId);
    if (user !== undefined) await findRecord(this.#finding(), id, validateUser(user));
    const lease = await this.#store.readLease(id);
    if (lease === null && user === undefined && (await unknownOf(this.#finding(), [id])).length > 0)
      throw sessionsNotFound([id]);
    return lease;
  }

  /**
   * Deletes sessions past their TTL that nobody uses, on disk and in the store, and clears away what is left of servers.
   * Safe beside itself and any other use of the fleet; killed at any point, the next one finishes. Each host that is there
   * does that with what is its own.
   *
   * @throws FleetError `FLEET_DURATION_INVALID`, `FLEET_USER_INVALID`.
   */
  async gc(request: GcRequest = {}): Promise<GcResult> {
    return await gatherGarbage(this.#hosts, this.#gcOptions(request));
  }

  #gcOptions(request: GcRequest): GcOptions {
    return {
      ttlMs:
        request.ttl === undefined ? this.config.session.ttlMs : parseDuration(request.ttl, { name: option("ttl") }),
      dryRun: request.dryRun ?? false,
      user: request.user === undefined ? undefined : validateUser(request.user),
      signal: request.signal ?? NEVER,
    };
  }

  /**
   * Makes a token with which clients of the user connect to the front door. It is in the result and nowhere else.
   *
   * @param options.ttl how long it is good, such as `30d`; left out: until it is revoked.
   */
  async issueToken(user: string, options: { ttl?: Duration } = {}): Promise<IssuedToken> {
    const ttlMs = options.ttl === undefined ? null : parseDuration(options.ttl, { name: option("ttl") });
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
   * @param options.listen an address such as "127.0.0.1:4300", port 0 for any free one, or an inherited descriptor that listens
   * already; left out: `serve.listen` of the configuration
   * @throws FleetError `FLEET_ADDRESS_TAKEN`, `FLEET_ADDRESS_UNUSABLE`.
   */
  async openFrontDoor(options: OpenDoorOptions = {}): Promise<FrontDoor> {
    // Loaded only now: every other command is faster without it.
    const { openFrontDoor } = await import("./gateway/door.js");
    const { listen: given = this.config.serve.listen ?? ANY_ADDRESS, ...listeners } = options;
    const listen = readListener(given, "listen");
    const { answerCall } = await import("./peers/calls.js");
    const context = {
      config: this.config,
      store: this.#store,
      sessions: this.#sessions,
      pool: this.#pool,
      directory: this.#directory,
      control: async (method: string, params: object, signal: AbortSignal) =>
        await answerCall(this.#own, method, params, signal),
    };
    // Its clients are not the caller: a lease that the caller runs under is not theirs.
    const door = await this.#leases.ambient.outside(() => openFrontDoor(context, { ...listeners, listen }));
    this.#endings.push(async () => await door.close());
    return door;
  }

  /**
   * Problems that were met and worked around since the last call: with the recorded state, hosts that did not answer, and turns
   * that were answered and could not be recorded.
   */
  takeWarnings(): string[] {
    return [...new Set([...this.#store.takeWarnings(), ...this.#warnings.splice(0)])];
  }

  /**
   * Ends all connections of this process. Front doors close at once and cut their turns, and a supervisor leaves. Servers and
   * sessions stay; ephemeral sessions that this fleet has open are deleted.
   */
  async close(): Promise<void> {
    this.#closed = true;
    const endings = this.#endings.splice(0);
    const [open, provider] = [[...this.#open.values()], this.#provider];
    this.#open.clear();
    this.#provider = undefined;
    const steps = [
      ...endings,
      async () => void (await allOf(open.map(async ({ close }) => await close()))),
      async () => await this.#doors.closeAll(),
      async () => await this.#clients.closeAll(),
      async () => await (await provider)?.close(),
      async () => await this.#store.close(),
    ];
    // One that fails keeps none from its end: what stayed open would keep the process alive.
    const failures: unknown[] = [];
    for (const step of steps) await step().catch((error: unknown) => void failures.push(error));
    if (failures.length > 0) throw failures[0];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #remember(open: OpenSession): CopilotSession {
    return this.#keep({
      open,
      leave: async (options) => await this.#sessions.leave(open, open.record.owner, options),
      close: async () => await open.close(),
    });
  }

  #rememberRemote(open: RemoteSession, user: string): CopilotSession {
    return this.#keep({
      open,
      leave: async (options) => await this.#remote.leave(open, user, options),
      close: async () => await this.#remote.end(open),
    });
  }

  #keep(opened: Opened): CopilotSession {
    const { session } = opened.open;
    this.#open.set(session.sessionId, opened);
    return session;
  }

  #opened(sessionId: string): Opened {
    const open = this.#open.get(sessionId);
    if (open !== undefined) return open;
    throw new FleetError(
      "FLEET_USAGE_INVALID",
      `Session ${quote(sessionId)} was not opened with this Fleet: call createSession or resumeSession first.`,
    );
  }

  #finding(): FindContext {
    return { store: this.#store, directory: this.#directory, sessions: this.#sessions, hosts: this.#hosts };
  }

  #assertOpen(): void {
    if (this.#closed) throw fleetClosed();
  }

  #openedProvider(): Promise<OpenedProvider> {
    this.#assertOpen();
    this.#provider ??= openProvider(this.config.provider, this.#env);
    return this.#provider;
  }

  #acquireOptions(id: string, options: LockOptions): AcquireOptions {
    const acquire = acquireOptions(id, options, this.config);
    return { ...acquire, mayUse: () => findRecord(this.#finding(), acquire.sessionId, acquire.holder) };
  }
}

/** Every method that can be refused. One that is not listed in {@link ARGUMENTS} does not compile. */
type GuardedMethod = Exclude<
  keyof Fleet,
  "config" | "stateRoot" | "close" | "takeWarnings" | typeof Symbol.asyncDispose
>;

/** The options of a turn, with one more listener to the pieces of its reply. */
function alsoTo<T extends SendOptions>(onDelta: (text: string) => void, options: T): T {
  return {
    ...options,
    onDelta: (text: string) => {
      onDelta(text);
      options.onDelta?.(text);
    },
  };
}

/** A session that this process has open, here or on another host. */
interface Opened {
  open: OpenSession | RemoteSession;
  leave(options: { park?: boolean }): Promise<SessionView>;
  close(): Promise<void>;
}

function openFleetStore(config: Config, stateRoot: string): Store {
  const { store } = config;
  return store.kind === "file"
    ? openStore("file", stateRoot)
    : openStore(store.url, stateRoot, ownHostName(config, stateRoot), () => instanceOf(stateRoot));
}

function validateMembers(members: readonly string[], owner: string): string[] {
  const valid = [...new Set(members.map((member) => validateUser(member, option("members"))))];
  if (!valid.includes(owner)) return valid;
  throw new FleetError(
    "FLEET_USAGE_INVALID",
    `${option("members")} ${quote(owner)} is the owner: only other users are members.`,
  );
}
