import { NEVER } from "../../base/clock.js";
import { option } from "../../base/errors.js";
import type { HostRecord } from "../../base/host.js";
import { addUp, counted } from "../../base/progress.js";
import { SERVER_STATES } from "../../base/server.js";
import { parseMoment } from "../../base/values/measures.js";
import { groupByHost, onEachHost, type Placed } from "../../hosts/fleet-hosts.js";
import { filterServers, gatherServers, spawnEverywhere } from "../../hosts/gather.js";
import type {
  LogEndOptions,
  RollingRequest,
  RouteView,
  ServerFilter,
  SpawnManyRequest,
  SpawnRequest,
  StopRequest,
  SuperviseOptions,
} from "../../hosts/options.js";
import { lookAtAll, type Overview } from "../../hosts/overview.js";
import { actingAs } from "../../identity/acting.js";
import * as arg from "../../operations/fields.js";
import type { LogEnd, LogPosition } from "../../serve/logs.js";
import type { Supervisor } from "../../serve/supervisor.js";
import { closePool, liveSupervisor, openPool, type PoolState, poolState } from "../../servers/admission.js";
import { hostAway } from "../../servers/directory.js";
import type { Strategy } from "../../servers/placement.js";
import type { RollingResult } from "../../servers/recycle.js";
import { type ServerView, viewServer } from "../../servers/server.js";
import type { Stopped } from "../../servers/stop.js";
import type { FleetParts } from "../parts.js";
import type { DoorGroup } from "./doors.js";
import { Group } from "./group.js";

/**
 * The servers of all hosts. A method accepts a server's id or a unique prefix of it. If a user has servers with the
 * same id on several hosts, `ID@HOST` names one of them.
 *
 * A method that takes an id throws `FLEET_NAME_NOT_FOUND` when the server does not exist, and `FLEET_HOST_AWAY` when
 * its host cannot be reached.
 */
export class ServerGroup extends Group {
  /**
   * Returns the user's own server on the host where the user is placed. Starts the server if it is not running.
   *
   * @throws FleetError such as `FLEET_USAGE_INVALID`, `FLEET_PORTS_EXHAUSTED`, `FLEET_SERVER_START_TIMEOUT`,
   * `FLEET_SERVER_EXITED` or `FLEET_RUNTIME_UNUSABLE`.
   */
  async spawn(
    user: string,
    { signal, ...request }: SpawnRequest & { signal?: AbortSignal } = {},
  ): Promise<{ server: ServerView; created: boolean }> {
    const host = await this.parts.hosts.ofUser(user);
    return await host.spawn({ user, request }, { signal });
  }

  /**
   * Starts the servers of many users in parallel.
   *
   * @throws FleetError when some servers cannot be started. The message has the reason for each. The other servers run.
   */
  async spawnMany(users: readonly string[], options: SpawnManyRequest = {}): Promise<{ servers: ServerView[] }> {
    return { servers: await spawnEverywhere(this.parts.hosts, users, options) };
  }

  /** Starts one more shared server on this host. */
  async spawnShared(options: SpawnRequest = {}): Promise<{ server: ServerView; created: true }> {
    return { server: await this.parts.own.spawnShared(options), created: true };
  }

  /**
   * Lists the recorded servers of all hosts. Repairs records that a crash left wrong. If a host does not answer, adds a
   * warning (`fleet.takeWarnings`) and shows its servers as it last recorded them, with `away` set to true.
   *
   * @throws FleetError `FLEET_USAGE_INVALID` when the fleet does not have the host of the filter.
   */
  async list(filter: ServerFilter = {}): Promise<ServerView[]> {
    return await filterServers(this.parts, await gatherServers(this.parts.hosts), filter);
  }

  /** Returns one server on any host. */
  async get(id: string): Promise<ServerView> {
    const { host, server } = await this.parts.hosts.find(id);
    return await host.server({ id: server.id });
  }

  /**
   * Returns the recorded server of a user. If several hosts have a server of this user, prefers the host where the user
   * is placed.
   */
  async ofUser(user: string): Promise<ServerView> {
    const { host, server } = await this.parts.hosts.findOf(user);
    return await host.server({ id: server.id });
  }

  /**
   * Returns the server that a user's next session would use, and starts it if it is not running. It is the user's own
   * server, or a shared server that the configured strategy chooses.
   */
  async place(user: string, options: SpawnRequest = {}): Promise<ServerView> {
    return await (await this.parts.hosts.ofUser(user)).serverFor({ user, request: options });
  }

  /**
   * Returns the server that a user's next session would use, and the reason. Starts nothing.
   *
   * @throws FleetError `FLEET_HOST_AWAY` when the host of that server cannot be reached.
   */
  async route(user: string, options: { strategy?: Strategy } = {}): Promise<RouteView> {
    const { config, directory, store, pool } = this.parts;
    const foreseen = await directory.foresee(user);
    const elsewhere = store.hosts !== null && foreseen !== null && foreseen.host !== store.hosts.own;
    const registry = elsewhere ? await store.hosts.registryOf(foreseen.host) : await store.registry.read();
    const on = elsewhere ? { on: { host: foreseen.host, registry } } : {};
    const { serverId, strategy, reason } = await pool.placer.foresee(user, { ...options, ...on });
    const server = registry.servers[serverId];
    return {
      user,
      isolation: config.isolation,
      strategy,
      host: foreseen?.host ?? null,
      serverId,
      reason: foreseen === null ? reason : `${foreseen.reason}; ${reason}`,
      server:
        server === undefined ? null : elsewhere ? await this.#viewOn(foreseen.host, server.id) : viewServer(server),
      pool: poolState(registry),
    };
  }

  /** Waits for turns in flight, stops the servers and frees their ports. Their homes and sessions stay. */
  async stop(
    ids: readonly string[],
    { signal, onProgress, ...request }: StopRequest = {},
  ): Promise<{ stopped: Stopped[] }> {
    const found = await this.#found(ids);
    const stopped = await onEachHost(
      found,
      async (host, own, progress) => await host.stop({ ids: own, request }, { signal, onProgress: progress }),
      onProgress,
    );
    return { stopped: stopped.flat() };
  }

  /**
   * Stops the servers as {@link stop} does, and starts them again with the same homes. A server keeps its port if the
   * port is still free.
   */
  async restart(
    ids: readonly string[],
    { signal, onProgress, ...request }: StopRequest = {},
  ): Promise<{ stopped: Stopped[]; servers: ServerView[] }> {
    const found = await this.#found(ids);
    const results = await onEachHost(
      found,
      async (host, own, progress) => await host.restart({ ids: own, request }, { signal, onProgress: progress }),
      onProgress,
    );
    return { stopped: results.flatMap(({ stopped }) => stopped), servers: results.flatMap(({ servers }) => servers) };
  }

  /**
   * Replaces running servers with new processes on the same homes, for example to use a new version of the runtime.
   * Replaces the first server alone, and then at most `maxUnavailable` at a time, one host after the other. Drains an
   * old process only after its new process answers.
   *
   * @throws FleetError when a new process does not start. The old process and all remaining servers keep running. The
   * message contains the number of servers that were replaced before the failure.
   */
  async restartRolling(ids: readonly string[], options: RollingRequest = {}): Promise<RollingResult> {
    const { signal, onProgress, ...request } = options;
    const result: RollingResult = { stopped: [], servers: [] };
    const groups = groupByHost(await this.#found(ids));
    const progressOf = addUp(onProgress, groups.flatMap((group) => group.ids).length);
    for (const { host, ids: own } of groups) {
      const { stopped, servers } = await counted(progressOf(host.name ?? ""), own.length, async (progress) => {
        return await host.restartRolling({ ids: own, request }, { signal, onProgress: progress });
      });
      result.stopped.push(...stopped);
      result.servers.push(...servers);
    }
    return result;
  }

  /**
   * Returns the last lines of a server's log, and the position from which {@link followLog} continues. Lines from the
   * fleet begin with their time, but lines from the runtime have no time. So with `since`, the result contains a line
   * from the runtime if it might have been written since then.
   */
  async logEnd(id: string, { lines, since, previous }: LogEndOptions): Promise<LogEnd> {
    const { host, server } = await this.parts.hosts.find(id);
    const sinceMs = since === undefined ? undefined : parseMoment(since, option("since"));
    return await host.logEnd({ id: server.id, lines, sinceMs, previous });
  }

  /** Yields the bytes that are added to a server's log, until the signal aborts. */
  async *followLog(id: string, options: { at: LogPosition; signal: AbortSignal }): AsyncGenerator<Buffer> {
    const { host, server } = await this.parts.hosts.find(id);
    yield* host.followLog(server.id, options.at, options.signal);
  }

  async #found(ids: readonly string[]): Promise<Placed[]> {
    const found = await Promise.all(ids.map(async (id) => await this.parts.hosts.find(id)));
    return found.map(({ host, server }) => ({ host, id: server.id }));
  }

  async #viewOn(name: string, id: string): Promise<ServerView> {
    const host = await this.parts.hosts.thereUnder(name);
    if (host === null) throw hostAway(name);
    return await host.server({ id });
  }

  static {
    Group.guard(ServerGroup.prototype, {
      spawn: ["user", "options"],
      spawnMany: ["users", "options"],
      spawnShared: ["options"],
      list: [arg.options({ state: arg.choice(SERVER_STATES) })],
      get: ["id"],
      ofUser: ["user"],
      place: ["user", "options"],
      route: ["user", "options"],
      stop: ["ids", "options"],
      restart: ["ids", "options"],
      restartRolling: ["ids", "options"],
      logEnd: ["id", arg.needs(["lines"])],
      followLog: ["id", arg.needs(["at", "signal"])],
    });
  }
}

/** The `serve` of this host. */
export interface SupervisorView {
  pid: number;
  /** The version of copilotfleet that runs this `serve`; null if its record lacks it. */
  version: string | null;
  state: "serving" | "draining";
  /** ISO 8601, UTC. */
  startedAt: string;
  /** `host:port` of its metrics and health endpoints; null while it starts. */
  metrics: string | null;
  /** `host:port` of its front door; null if it has none. */
  door: string | null;
  /** The URL of its HTTP API; null if it has none. */
  http: string | null;
}

/** All servers of this host together. */
export class PoolGroup extends Group {
  readonly #doors: DoorGroup;

  constructor(parts: FleetParts, doors: DoorGroup) {
    super(parts);
    this.#doors = doors;
  }

  /** Returns whether the pool admits new servers and turns, and if not, the reason. */
  async state(): Promise<PoolState> {
    return poolState(await this.parts.store.registry.read());
  }

  /**
   * Closes the pool to new servers and turns of any process. Waits for turns in flight, and stops all servers.
   * {@link undrain} opens the pool again. The next supervisor also does so when it starts, and starts the stopped
   * servers.
   *
   * @throws FleetError `FLEET_USAGE_INVALID` when a timeout is malformed or out of bounds.
   */
  async drain(options: StopRequest = {}): Promise<{ stopped: Stopped[] }> {
    const { store, pool, own, config } = this.parts;
    await closePool(store);
    const ids = (await pool.all()).map(({ id }) => id);
    const { drainTimeoutMs = config.drain.timeoutMs, force = false, signal = NEVER, onProgress } = options;
    return { stopped: await own.stopAll(ids, { drainTimeoutMs, force, signal, onProgress, stays: true }) };
  }

  /** Opens the drained pool again. */
  async undrain(): Promise<void> {
    await openPool(this.parts.store);
  }

  /**
   * Supervises the servers of this host, as the command `serve` does, until the {@link Supervisor} drains or leaves.
   *
   * @throws FleetError `FLEET_SUPERVISOR_RUNNING` when this host has a supervisor; `FLEET_ADDRESS_TAKEN` or
   * `FLEET_ADDRESS_UNUSABLE` when it cannot listen on an address.
   */
  async supervise(options: SuperviseOptions): Promise<Supervisor> {
    // Import the supervisor only here, because every command except `serve` starts faster without it.
    const { Supervisor } = await import("../../serve/supervisor.js");
    const { config, own, endings } = this.parts;
    const { log, listen: given = config.serve.listen, http: givenHttp = config.serve.http, signal = NEVER } = options;
    const listen = given === null ? null : arg.readListener(given, option("listen"));
    const http = givenHttp === null ? null : arg.readListener(givenHttp, option("http"));
    const fleet = { ...this.parts, log, listen, http, doors: this.#doors, host: own };
    const supervisor = await actingAs({ via: "fleet" }, async () => await Supervisor.start(fleet, signal));
    endings.unshift(async () => await supervisor.leave());
    return supervisor;
  }

  /** Returns the PID of the `serve` that supervises this host; null if none runs. */
  async supervisorPid(): Promise<number | null> {
    return (await this.supervisor())?.pid ?? null;
  }

  /** Returns the `serve` that supervises this host; null if none runs. */
  async supervisor(): Promise<SupervisorView | null> {
    const record = liveSupervisor(await this.parts.store.registry.read());
    if (record === undefined) return null;
    const { process, version = null, state, startedAt, metrics, door = null, http = null } = record;
    return { pid: process.pid, version, state, startedAt, metrics, door, http };
  }

  static {
    Group.guard(PoolGroup.prototype, {
      state: [],
      drain: ["options"],
      undrain: [],
      supervise: [arg.needs(["log"])],
      supervisorPid: [],
      supervisor: [],
    });
  }
}

/** The hosts of the fleet, and the placement of users on them. */
export class HostGroup extends Group {
  /** Lists the hosts of the fleet, including those that are gone; empty if the store supports only one host. */
  async list(): Promise<HostRecord[]> {
    return await this.parts.directory.list();
  }

  /** Lists the names of the hosts of the fleet; empty if the store supports only one host. */
  async names(): Promise<string[]> {
    return await this.parts.hosts.names();
  }

  /** Returns all hosts, servers and users of the fleet, and the number of sessions. */
  async overview(): Promise<Overview> {
    return await lookAtAll(this.parts);
  }

  static {
    Group.guard(HostGroup.prototype, {
      list: [],
      names: [],
      overview: [],
    });
  }
}
