import type { CopilotClient, CopilotSession } from "@github/copilot-sdk";
import { loadConfig } from "../config/load/load.js";
import type { Address } from "../config/rules.js";
import type { Config } from "../config/schema.js";
import { type Duration, parseDuration } from "../config/values/duration.js";
import { FleetError, isFleetError, option, quote } from "../errors.js";
import type { FrontDoor } from "../gateway/door.js";
import type { DoorListeners } from "../gateway/state/door/report.js";
import { HostDirectory } from "../hosts/directory.js";
import { ensureNote, instanceOf, ownHostName, refuseRenamed } from "../hosts/host-note.js";
import { hostAway } from "../hosts/problems.js";
import { planRebalance, type RebalancePlan } from "../hosts/rebalance.js";
import { refuseOtherSettings } from "../hosts/serving-note.js";
import { Takeover } from "../hosts/takeover.js";
import {
  type IssuedToken,
  issueToken,
  listTokens,
  revokeTokens,
  type TokenView,
  validateTokenId,
} from "../identity/tokens.js";
import type { HostRecord } from "../model/host.js";
import { newSessionId, validateSessionId, validateUser } from "../model/ids.js";
import type { Lease } from "../model/lease.js";
import type { ServerRecord } from "../model/server.js";
import { type OpenedProvider, openProvider } from "../models/provider.js";
import { DoorClients } from "../peers/calls/door-client.js";
import { allOf, FleetHosts, type FoundServer, groupByHost } from "../peers/fleet-hosts.js";
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
} from "../peers/gather.js";
import type { LogEnd } from "../peers/host-actions.js";
import { moveUsers } from "../peers/move-users.js";
import { OtherHost } from "../peers/other-host.js";
import { lookAtAll, type Overview } from "../peers/overview.js";
import { OwnHost } from "../peers/own-host.js";
import { onAnotherHost, tokenStaysHere } from "../peers/problems.js";
import { deleteEverywhere } from "../peers/sessions/delete.js";
import { type FindContext, findRecord, whereItIs } from "../peers/sessions/find.js";
import type { RemoteSession } from "../peers/sessions/remote-session.js";
import { RemoteSessions } from "../peers/sessions/remote-sessions.js";
import { closePool, launchesOf, liveSupervisor, openPool, type PoolState, poolState } from "../pool/admission.js";
import { type ClientOptions, Clients, fleetClosed } from "../pool/clients.js";
import { Pool, type Strategy } from "../pool/pool.js";
import type { RollingResult } from "../pool/recycle/rolling.js";
import { isBroken, type ServerView, viewServer } from "../pool/server.js";
import { heldPorts } from "../pool/start/ports.js";
import type { Stopped } from "../pool/stop/stop.js";
import type { TurnReply } from "../runtime/client/turn.js";
import { provenEndpoint } from "../runtime/process/probe.js";
import type { LogPosition } from "../serve/logs/log-tail.js";
import type { Supervisor } from "../serve/supervisor.js";
import type { GcOptions, GcRequest, GcResult } from "../sessions/gc/collect.js";
import { type AcquireOptions, type HeldLease, Leases } from "../sessions/leases/leases.js";
import { acquireOptions, type LockOptions } from "../sessions/leases/options.js";
import type { EvictionResult } from "../sessions/memory/eviction.js";
import { sessionsNotFound } from "../sessions/problems.js";
import { Sessions } from "../sessions/sessions.js";
import type { OpenSession } from "../sessions/use/open-session.js";
import { PendingReply } from "../sessions/use/reply.js";
import type { SessionView } from "../sessions/view.js";
import { checkStateFolder } from "../store/file/state-folder.js";
import { openStore } from "../store/open.js";
import type { Store } from "../store/ports.js";
import { ARGUMENTS, guardMethods, readFleetOptions, readListener } from "./arguments.js";
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
} from "./options.js";

const START_WAIT_MS = 30_000;
const NEVER = new AbortController().signal;
const ANY_ADDRESS: Address = { host: "127.0.0.1", port: 0 };

/**
 * The fleet of one state folder. It has the same servers, sessions and rules as the command `copilotfleet`. Any number
 * of processes may have it open at once.
 *
 * Closing it (`await using`, or {@link Fleet.close}) ends the connections of this process. Servers and sessions stay.
 * After that, every method fails with `FLEET_CLOSED`.
 *
 * A duration is a text such as "30s" or a number of milliseconds. An argument that is not allowed is a usage error.
 */
export class Fleet implements AsyncDisposable {
  /** The configuration in force. */
  readonly config: Config;
  /** The absolute path of the folder with all state of this host. */
  readonly stateRoot: string;
  readonly #store: Store;
  readonly #directory: HostDirectory;
  readonly #takeover: Takeover;
  readonly #pool: Pool;
  readonly #clients = new Clients();
  readonly #sessions: Sessions;
  readonly #leases: Leases;
  /** This host alone, and all hosts of the fleet. */
  readonly #own: OwnHost;
  readonly #hosts: FleetHosts;
  readonly #remote: RemoteSessions;
  readonly #doors = new DoorClients();
  readonly #open = new Map<string, Opened>();
  readonly #warnings: string[] = [];
  /**
   * Closes the front doors and supervisors of this process. A supervisor comes before its door. Closing again is
   * harmless.
   */
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
   * @throws FleetError `FLEET_CONFIG_…` when the configuration is not allowed, or its store, host name or shared folder
   * differs from that of a `serve` running on the same state folder; `FLEET_STATE_UNSAFE` when others could change the
   * state folder.
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
   * Returns the user's own server on the host where the user is placed. Starts the server if it is not running.
   *
   * @throws FleetError such as `FLEET_USER_INVALID`, `FLEET_PORTS_EXHAUSTED`, `FLEET_SERVER_START_TIMEOUT`,
   * `FLEET_SERVER_EXITED` or `FLEET_RUNTIME_MISSING`.
   */
  async spawn(user: string, request: SpawnRequest = {}): Promise<{ server: ServerView; created: boolean }> {
    const id = validateUser(user);
    return await (await this.#hosts.ofUser(id)).spawn(id, request);
  }

  /**
   * Starts the servers of many users in parallel.
   *
   * @throws FleetError when some servers cannot be started. The message gives a reason for each of them. The other
   * servers run.
   */
  async spawnMany(users: readonly string[], request: SpawnRequest = {}): Promise<ServerView[]> {
    const valid = users.map((user) => validateUser(user));
    return await spawnEverywhere(this.#hosts, valid, request);
  }

  /** Starts one more shared server on this host. */
  async spawnShared(request: SpawnRequest = {}): Promise<ServerView> {
    return await this.#own.spawnShared(request);
  }

  /**
   * Lists the recorded servers of all hosts in their current state. Repairs records that a crash left incomplete. If a
   * host does not answer, adds a warning ({@link takeWarnings}) and shows its servers as it last recorded them
   * (`away`).
   */
  async servers(): Promise<ServerView[]> {
    const [servers, records] = await Promise.all([gatherServers(this.#hosts), this.#store.sessions.list()]);
    return withSessionCounts(servers, records, this.#directory.own);
  }

  /** Lists the hosts of the fleet, including those that are gone; empty if the store supports only one host. */
  async hosts(): Promise<HostRecord[]> {
    return await this.#directory.list();
  }

  /** Lists the names of the hosts of the fleet; empty if the fleet has only one host. */
  async hostNames(): Promise<string[]> {
    return await this.#hosts.names();
  }

  /** Returns all hosts, their servers, and the number of sessions. */
  async overview(): Promise<Overview> {
    const { config, stateRoot } = this;
    return await lookAtAll({ ...this.#finding(), config, stateRoot });
  }

  /** Returns the number of servers that are recorded on this host, in any state. */
  async recordedServers(): Promise<number> {
    return Object.keys((await this.#store.registry.read()).servers).length;
  }

  /**
   * Returns the number of recorded sessions of all hosts. Reads each record, so damage adds a warning
   * ({@link takeWarnings}).
   */
  async recordedSessions(): Promise<number> {
    return (await this.#store.sessions.list()).length;
  }

  /** Writes the registry again if one of its files is damaged. */
  async repairRegistry(): Promise<void> {
    await this.#store.registry.update(() => undefined);
    this.#store.takeWarnings(); // drop the warnings about the repaired damage
  }

  /** Writes each session record again if its file is damaged. */
  async repairSessionRecords(): Promise<void> {
    for (const { id } of await this.#store.sessions.list()) {
      await this.#store.sessions
        .update(id, () => undefined)
        .catch((error: unknown) => {
          if (!isFleetError(error, "FLEET_SESSION_NOT_FOUND")) throw error; // deleted since the listing
        });
    }
    this.#store.takeWarnings();
  }

  /**
   * Returns the ids of servers on this host whose records do not match the running processes. {@link Fleet.servers}
   * repairs them.
   */
  async brokenServers(): Promise<string[]> {
    return Object.values((await this.#store.registry.read()).servers)
      .filter(isBroken)
      .map(({ id }) => id);
  }

  /**
   * Returns the launch ids of all recorded servers of this host. A process of this fleet with another launch id is a
   * stray.
   */
  async launchIds(): Promise<Set<string>> {
    return launchesOf(await this.#store.registry.read());
  }

  /** Returns whether the pool of this host admits new servers and turns, and if not, the reason. */
  async poolState(): Promise<PoolState> {
    return poolState(await this.#store.registry.read());
  }

  /** Returns the PID of the `serve` that supervises this host; null if none runs. */
  async supervisorPid(): Promise<number | null> {
    return liveSupervisor(await this.#store.registry.read())?.process.pid ?? null;
  }

  /** Returns the ports of the recorded servers of this host. */
  async heldPorts(): Promise<Set<number>> {
    return heldPorts(await this.#store.registry.read());
  }

  /**
   * Finds one server on any host by its id or a unique prefix of it. A user may have servers with the same id on
   * several hosts; `ID@HOST` selects one of them.
   *
   * @throws FleetError `FLEET_SERVER_NOT_FOUND` when it does not exist; `FLEET_HOST_AWAY` when its host cannot be
   * reached.
   */
  async server(id: string): Promise<ServerView> {
    return await this.#view(await this.#hosts.find(id));
  }

  /**
   * Returns the last lines of a server's log, and the position from which {@link followLog} continues.
   *
   * @throws like {@link server}.
   */
  async logEnd(id: string, lines: number): Promise<LogEnd> {
    const { host, server } = await this.#hosts.find(id);
    return await host.logEnd(server.id, lines);
  }

  /**
   * Yields the bytes that are added to a server's log, until the signal aborts.
   *
   * @throws like {@link server}.
   */
  async *followLog(id: string, at: LogPosition, signal: AbortSignal): AsyncGenerator<Buffer> {
    const { host, server } = await this.#hosts.find(id);
    yield* host.followLog(server.id, at, signal);
  }

  /**
   * Returns the server that a user's next session would use, and starts it if it is not running. It is the user's own
   * server, or a shared one that the configured strategy chooses.
   */
  async serverFor(user: string, request: SpawnRequest = {}): Promise<ServerView> {
    const id = validateUser(user);
    return await (await this.#hosts.ofUser(id)).serverFor(id, request);
  }

  /**
   * Returns the server that a user's next session would use, and the reason. Starts nothing.
   *
   * @throws FleetError `FLEET_HOST_AWAY` when the host of that server cannot be reached.
   */
  async route(user: string, options: { strategy?: Strategy } = {}): Promise<RouteView> {
    const id = validateUser(user);
    const { isolation } = this.config;
    const foreseen = await this.#directory.foresee(id);
    const { hosts } = this.#store;
    const isElsewhere = hosts !== null && foreseen !== null && foreseen.host !== hosts.own;
    const registry = isElsewhere ? await hosts.registryOf(foreseen.host) : await this.#store.registry.read();
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

  /** Returns the users who would move if all users were placed again on the current hosts. Moves nobody. */
  async planRebalance(): Promise<RebalancePlan> {
    const [hosts, placements, sessions] = await Promise.all([
      this.#directory.list(),
      this.#store.placements.list(),
      this.#store.sessions.list(),
    ]);
    return planRebalance({ hosts, placements, sessions, isShared: this.#directory.isShared });
  }

  /**
   * Moves users as {@link planRebalance} proposes, each session between two turns. If a turn takes too long, its
   * session stays where it is. It still works there, and a later call can move it.
   */
  async rebalance(request: RebalanceRequest = {}): Promise<Rebalanced> {
    const { moves, stays } = await this.planRebalance();
    const waitMs = request.waitMs ?? this.config.drain.timeoutMs;
    return { moved: await moveUsers(moves, waitMs, { store: this.#store, hosts: this.#hosts }), stays };
  }

  /**
   * Returns the recorded server of a user, on the host where the user is placed.
   *
   * @throws FleetError `FLEET_SERVER_NOT_FOUND` when it does not exist; `FLEET_HOST_AWAY` when its host cannot be
   * reached.
   */
  async serverOf(user: string): Promise<ServerView> {
    return await this.#view(await this.#hosts.findOf(validateUser(user)));
  }

  async #view({ host, server }: FoundServer): Promise<ServerView> {
    return await host.server(server.id);
  }

  /** Returns the current state of a server on another host. */
  async #viewOn(name: string, { id }: ServerRecord): Promise<ServerView> {
    const host = await this.#hosts.thereUnder(name);
    if (host === null) throw hostAway(name);
    return await host.server(id);
  }

  async #found(ids: readonly string[]): Promise<FoundServer[]> {
    return await Promise.all(ids.map(async (id) => await this.#hosts.find(id)));
  }

  /** Waits for turns in flight, stops the servers and frees their ports, on any host. Their homes and sessions stay. */
  async stop(ids: readonly string[], request: StopRequest = {}): Promise<Stopped[]> {
    const found = await this.#found(ids);
    return (await this.#hosts.onEach(found, async (host, own) => await host.stop(own, request))).flat();
  }

  /**
   * Stops the servers as {@link stop} does, and starts them again with the same homes. They keep their ports if these
   * are still free.
   */
  async restart(
    ids: readonly string[],
    request: StopRequest = {},
  ): Promise<{ stopped: Stopped[]; servers: ServerView[] }> {
    const found = await this.#found(ids);
    const results = await this.#hosts.onEach(found, async (host, own) => await host.restart(own, request));
    return { stopped: results.flatMap(({ stopped }) => stopped), servers: results.flatMap(({ servers }) => servers) };
  }

  /**
   * Replaces running servers with new processes on the same homes, for example to use a new version of the runtime.
   * Replaces the first server alone, and then at most `maxUnavailable` at a time. Drains an old process only after its
   * new process answers. Stops at the first server whose new process does not start. That server and the remaining ones
   * keep running. Handles one host after the other.
   *
   * @throws FleetError with the code of that failure. The message contains the number of servers replaced before.
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
   * Closes the pool of this host to new servers and turns, for every process. Waits for turns in flight, and stops all
   * servers. Servers that run now are started again by the next supervisor. {@link undrain} or a starting supervisor
   * opens the pool again.
   *
   * @throws FleetError `FLEET_DURATION_INVALID` when a timeout is malformed or out of bounds.
   */
  async drain(request: DrainRequest = {}): Promise<Stopped[]> {
    await closePool(this.#store);
    const ids = (await this.#pool.all()).map(({ id }) => id);
    const { drainTimeoutMs = this.config.drain.timeoutMs, force = false, signal = NEVER } = request;
    return await this.#own.stopAll(ids, { drainTimeoutMs, force, signal, stays: true });
  }

  /** Opens the drained pool of this host again. */
  async undrain(): Promise<void> {
    await openPool(this.#store);
  }

  /**
   * Supervises the servers of this host until the supervisor drains or leaves: see {@link Supervisor}. The command
   * `serve` does little else.
   *
   * @throws FleetError `FLEET_SUPERVISOR_RUNNING` when this host has a supervisor; `FLEET_ADDRESS_TAKEN` or
   * `FLEET_ADDRESS_UNUSABLE` when it cannot listen on an address.
   */
  async supervise(options: SuperviseOptions): Promise<Supervisor> {
    // Import it only here, because every other command starts faster without it.
    const { supervise } = await import("../serve/supervise.js");
    const { config, stateRoot } = this;
    const { listen = config.serve.listen } = options;
    const openDoor =
      listen === null
        ? null
        : async (door: DoorListeners & { signal: AbortSignal }) => await this.openFrontDoor({ ...door, listen });
    // The `serve` of each host runs gc for its own host.
    const gc = async (signal: AbortSignal) => await this.#own.gc(this.#gcOptions({ signal }));
    const [store, pool, directory] = [this.#store, this.#pool, this.#directory];
    const fleet = { store, pool, directory, config, stateRoot, log: options.log, gc, openDoor };
    const supervisor = await supervise(fleet, options.signal ?? NEVER);
    this.#endings.unshift(async () => await supervisor.leave());
    return supervisor;
  }

  /**
   * Returns the address and the token that an SDK client in any language needs to use the user's running server
   * directly. First proves that the process behind the port is that server. Servers listen only on their own host. On
   * another host, clients have to use the front door.
   *
   * @throws FleetError `FLEET_SERVER_NOT_FOUND` or `FLEET_SERVER_LOST` when the server does not run;
   * `FLEET_SERVER_UNREACHABLE` when it runs on another host.
   */
  async connectInfo(user: string): Promise<ConnectInfo> {
    const { host, server } = await this.#hosts.findOf(validateUser(user));
    if (host instanceof OtherHost) throw onAnotherHost(user, host.record);
    const { address, port, token } = provenEndpoint(server);
    return { url: `${address}:${port}`, token, user: server.user ?? user, serverId: server.id };
  }

  /**
   * Returns an SDK client that is connected to the user's own server, and starts the server if necessary. Further calls
   * return the same client while it is connected. The server starts with `gitHubToken`, which only its process gets; it
   * is not recorded. If the user is placed on another host, connects through the front door of that host.
   *
   * @throws FleetError `FLEET_USAGE_INVALID` when `gitHubToken` would have to be sent to another host.
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

  /** Ends the use of `clientForUser`: waits for all turns, stops the user's server and closes the client. */
  async releaseUser(user: string, request: StopRequest = {}): Promise<Stopped> {
    const { host, server } = await this.#hosts.findOf(validateUser(user));
    const [stopped] = await host.stop([server.id], request);
    await this.#doors.close(user);
    return stopped ?? { id: server.id, outcome: "already-stopped", cut: [] };
  }

  /**
   * Creates a session that belongs to the user, on the user's server, and starts the server if necessary. Also accepts
   * settings of the SDK's `createSession`. The fleet's configuration supplies provider, model and permissions.
   *
   * @throws FleetError `FLEET_SESSION_EXISTS` when a session has that id, even if it belongs to another user.
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
   * Opens an existing session. This also works in a new process, after its server was stopped or killed, and if the
   * session never had a turn.
   *
   * @throws FleetError `FLEET_SESSION_NOT_FOUND` when the session does not exist or belongs to another user. The error
   * is the same in both cases.
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
   * Runs one turn in a session that this fleet created or resumed. Ends at once if the server dies.
   *
   * @throws FleetError `FLEET_TURN_FAILED`, `FLEET_TURN_TIMEOUT` or `FLEET_SERVER_LOST`.
   */
  send(session: CopilotSession, prompt: string, options: SendOptions = {}): PendingReply<TurnReply> {
    return new PendingReply(
      async (onDelta) => await this.#opened(session.sessionId).open.send(prompt, alsoTo(onDelta, options)),
    );
  }

  /**
   * Opens a session, runs one turn in it, and leaves it. In a collaborative session, does all of this under the lease,
   * so that members on different servers can take turns.
   *
   * @throws FleetError like {@link resumeSession} and {@link send}; `FLEET_SESSION_LOCKED` when the lease is not
   * available in time.
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
   * Leaves a session. Unloads it if nobody else uses it, and keeps its state. Deletes an ephemeral session, unless
   * `park` keeps it for its next use.
   */
  async leaveSession(session: CopilotSession, options: { park?: boolean } = {}): Promise<SessionView> {
    const { leave } = this.#opened(session.sessionId);
    this.#open.delete(session.sessionId);
    return await leave(options);
  }

  /**
   * Unloads idle sessions of all users from the memory of their servers, and keeps their state. Skips a session that is
   * in a turn, under a lease, just being opened or not found, and reports the reason.
   */
  async evict(what: { ids: readonly string[] } | { max: number }): Promise<EvictionResult> {
    if ("max" in what) return await evictDownTo(this.#hosts, what.max);
    const ids = what.ids.map((id) => validateSessionId(id, option("sessionIds")));
    return await evictEverywhere(this.#finding(), ids);
  }

  /**
   * Lists the sessions of all users, or of one, on all hosts, most recently used first. If a host does not answer, adds
   * a warning ({@link takeWarnings}) and shows its sessions as recorded.
   */
  async sessions(user?: string): Promise<SessionView[]> {
    const context = { ...this.#finding(), ttlMs: this.config.session.ttlMs };
    return await gatherSessions(context, user === undefined ? undefined : validateUser(user));
  }

  /**
   * Returns one session of a user.
   *
   * @throws FleetError `FLEET_SESSION_NOT_FOUND` when it does not exist, or the user may not use it.
   */
  async sessionOf(sessionId: string, user: string): Promise<SessionView> {
    const context = { ...this.#finding(), ttlMs: this.config.session.ttlMs };
    return await viewSessionOf(context, validateSessionId(sessionId), validateUser(user));
  }

  /**
   * Deletes sessions permanently, and resolves with the ids of those that existed. With `user`, a session of another
   * user counts as not found.
   *
   * @param options.ignoreNotFound whether to ignore sessions that are not found
   * @throws FleetError `FLEET_SESSION_NOT_FOUND` after all other sessions were deleted; `FLEET_SESSION_BUSY` or
   * `FLEET_SESSION_LOCKED` when a session is in use. The error's `outcome` lists the deleted ids:
   * `{ deleted, notFound }`.
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
   * Runs `work` under the lease on a session. Renews the lease while `work` runs, and releases it at the end. Turns
   * that `work` starts for the same user in that session ({@link exchange}, {@link send}) use this lease, unless they
   * get another one. Call `await lease.check()` before any other step that must not run without the lease.
   *
   * @throws the error of `work`; FleetError `FLEET_SESSION_LOCKED` when the lease is not available in time,
   * `FLEET_SESSION_NOT_FOUND` when the user is neither owner nor member, `FLEET_LEASE_LOST` when the lease was lost
   * while `work` ran, whatever the result of `work`.
   */
  async withSessionLock<T>(id: string, options: LockOptions, work: (lease: HeldLease) => Promise<T>): Promise<T> {
    return await this.#leases.hold(this.#acquireOptions(id, options), work);
  }

  /**
   * Takes the lease on a session. The lease is renewed until it is released or detached.
   *
   * @throws like {@link withSessionLock}.
   */
  async lockSession(id: string, options: LockOptions): Promise<HeldLease> {
    return await this.#leases.acquire(this.#acquireOptions(id, options));
  }

  /**
   * Releases the lease that has this token.
   *
   * @throws FleetError `FLEET_LEASE_LOST` when the token is wrong or its lease has ended.
   */
  async unlockSession(sessionId: string, token: string): Promise<void> {
    await this.#store.leases.release(validateSessionId(sessionId), token);
  }

  /**
   * Returns the current lease on a session, or null.
   *
   * @throws FleetError `FLEET_SESSION_NOT_FOUND` when the session does not exist, or `user` may not use it.
   */
  async leaseOf(sessionId: string, user?: string): Promise<Lease | null> {
    const id = validateSessionId(sessionId);
    if (user !== undefined) await findRecord(this.#finding(), id, validateUser(user));
    const lease = await this.#store.leases.read(id);
    if (lease === null && user === undefined && (await unknownOf(this.#finding(), [id])).length > 0)
      throw sessionsNotFound([id]);
    return lease;
  }

  /**
   * Deletes sessions that are past their TTL and not in use, on disk and in the store. Also clears dead servers and
   * their folders. Can run during any other use of the fleet, including another gc. If it is killed, the next run
   * completes its work. Each reachable host does this for its own sessions and servers.
   *
   * @throws FleetError `FLEET_DURATION_INVALID` or `FLEET_USER_INVALID` when an option is not allowed.
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
   * Issues a token that lets clients of the user connect to the front door. Only the result contains the token; it is
   * not stored.
   *
   * @param options.ttl how long the token is valid, such as `30d`; if left out, until it is revoked
   */
  async issueToken(user: string, options: { ttl?: Duration } = {}): Promise<IssuedToken> {
    const ttlMs = options.ttl === undefined ? null : parseDuration(options.ttl, { name: option("ttl") });
    return await issueToken(this.#store, validateUser(user), ttlMs);
  }

  /** Lists the tokens of all users, or of one, that were issued and not revoked. */
  async tokens(user?: string): Promise<TokenView[]> {
    return await listTokens(this.#store, user === undefined ? undefined : validateUser(user));
  }

  /**
   * Revokes tokens by their ids, or all tokens of a user. A token that does not exist counts as revoked. Resolves with
   * the ids.
   */
  async revokeTokens(which: { ids: readonly string[] } | { user: string }): Promise<string[]> {
    const checked =
      "ids" in which ? { ids: which.ids.map((id) => validateTokenId(id)) } : { user: validateUser(which.user) };
    return await revokeTokens(this.#store, checked);
  }

  /**
   * Opens the front door in this process. It is one address at which any Copilot SDK with a user's token reaches the
   * fleet as if it were that user's own server. Close the door before the fleet.
   *
   * @param options.listen an address such as "127.0.0.1:4300", port 0 for any free port, or an inherited descriptor
   * that is already listening; if left out, `serve.listen` of the configuration
   * @throws FleetError `FLEET_ADDRESS_TAKEN` or `FLEET_ADDRESS_UNUSABLE` when it cannot listen on the address.
   */
  async openFrontDoor(options: OpenDoorOptions = {}): Promise<FrontDoor> {
    // Import it only here, because every other command starts faster without it.
    const { openFrontDoor } = await import("../gateway/door.js");
    const { listen: given = this.config.serve.listen ?? ANY_ADDRESS, ...listeners } = options;
    const listen = readListener(given, "listen");
    const { answerCall } = await import("../peers/calls/calls.js");
    const context = {
      config: this.config,
      store: this.#store,
      sessions: this.#sessions,
      pool: this.#pool,
      directory: this.#directory,
      control: async (method: string, params: object, signal: AbortSignal) =>
        await answerCall(this.#own, method, params, signal),
    };
    // The caller may hold a lease, but the door's clients must not use it.
    const door = await this.#leases.ambient.outside(() => openFrontDoor(context, { ...listeners, listen }));
    this.#endings.push(async () => await door.close());
    return door;
  }

  /**
   * Returns the problems since the last call that the fleet worked around: damaged records, hosts that did not answer,
   * and turns that were answered but could not be recorded.
   */
  takeWarnings(): string[] {
    return [...new Set([...this.#store.takeWarnings(), ...this.#warnings.splice(0)])];
  }

  /**
   * Ends all connections of this process. Closes front doors at once, which cuts their turns, and makes a supervisor
   * leave. Deletes the ephemeral sessions that this fleet has open. Servers and other sessions stay.
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
    // Run all steps even if one fails, because an open connection would keep the process alive.
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

/** Every method whose arguments are checked. A method that {@link ARGUMENTS} does not list is a compile error. */
type GuardedMethod = Exclude<
  keyof Fleet,
  "config" | "stateRoot" | "close" | "takeWarnings" | typeof Symbol.asyncDispose
>;

/** Adds a listener for the pieces of the reply to the options of a turn. */
function alsoTo<T extends SendOptions>(onDelta: (text: string) => void, options: T): T {
  return {
    ...options,
    onDelta: (text: string) => {
      onDelta(text);
      options.onDelta?.(text);
    },
  };
}

/** A session that this process has open, on this host or on another. */
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
