import { NEVER } from "../base/clock.js";
import { FleetError, isFleetError } from "../base/errors.js";
import { isSessionId } from "../base/ids.js";
import type { LimitsReached } from "../base/sandbox.js";
import type { ServerRecord } from "../base/server.js";
import { system } from "../base/system/system.js";
import { writeSize } from "../base/values/measures.js";
import { countOf } from "../base/values/text.js";
import { logPath } from "../runtime/files/server-folder.js";
import { isLoadedBy } from "../runtime/history/session-state.js";
import type { LaunchedProcess } from "../runtime/process/process-table.js";
import { endProcesses } from "../runtime/process/stop.js";
import { limitsReached } from "../sandbox/limits.js";
import { type EgressStatus, networkFolder } from "../sandbox/network/egress.js";
import { EGRESS_RESULTS } from "../sandbox/network/outbound.js";
import { describeBytes } from "../servers/disk-meter.js";
import { isClaimed, isRunning } from "../servers/server.js";
import { loadedSessions, sessionsInTurn } from "../servers/stop.js";
import { usedSessions } from "../servers/use-markers.js";
import { unloadOldest } from "../sessions/memory/eviction.js";
import { knownLoaded } from "../sessions/memory/open-notes.js";
import type { Operations, ServeContext } from "./context.js";
import { attempt, logFailure } from "./context.js";
import { rotateLog } from "./logs.js";
import type { ServerProcesses } from "./report/measurements.js";
import type { RecycleReason } from "./report/metrics.js";

/**
 * The size at which a server's log is rotated, and the number of rotated logs to keep in addition to the current one.
 */
const LOG_BYTES = 10 * 1024 * 1024;
const LOG_FILES = 3;

interface PeriodicTask {
  firstMs: number;
  everyMs: number;
  run(context: ServeContext, stopping: AbortSignal): Promise<void>;
}

/** The work that `serve` does on a schedule, no matter how the servers are. */
export const PERIODIC = {
  // The first gc comes soon, but late enough not to slow the start down.
  gc: { firstMs: 60_000, everyMs: 3_600_000, run: collectGarbage },
  logs: { firstMs: 30_000, everyMs: 30_000, run: rotateLogs },
  // Adds up the lines of the ledger, and sends the lines that processes of this host could not send to the store, for
  // example because they were killed.
  usage: { firstMs: 0, everyMs: 30_000, run: async ({ store }) => await store.usage.settled() },
  /** `doctor --fix` restores damaged records from this copy. */
  copy: { firstMs: 90_000, everyMs: 3_600_000, run: copyRecords },
} satisfies Record<string, PeriodicTask>;

/** Repeats a task until `stopping` aborts. */
export async function repeat(task: PeriodicTask, context: ServeContext, stopping: AbortSignal): Promise<void> {
  for (let ms = task.firstMs; ; ms = task.everyMs) {
    await context.clock.wait(ms, { signal: stopping, ref: false }).catch(() => "stopping");
    if (stopping.aborted) return;
    await task.run(context, stopping);
  }
}

async function collectGarbage(context: ServeContext, stopping: AbortSignal): Promise<void> {
  const { config, host, metrics, log, takeWarnings } = context;
  try {
    const result = await host.gc({ ttlMs: config.session.ttlMs, dryRun: false }, { signal: stopping });
    metrics.gcRan(result);
    const { deleted, skipped, freedBytes, servers, unreadable } = result;
    for (const { id, code, message } of unreadable)
      logFailure(context, `gc left session ${id} alone`, new FleetError(code, message), { session: id });
    const counts = { deleted: deleted.length, skipped: skipped.length, freedBytes, servers: servers.length };
    const level = deleted.length + servers.length > 0 ? "info" : "debug";
    log(level, `gc deleted ${countOf(deleted.length, "session")}`, counts);
  } catch (error) {
    if (stopping.aborted) return;
    metrics.series.gcRuns.inc({ outcome: "failed" });
    logFailure(context, "gc failed", error);
  }
  for (const warning of takeWarnings()) log("warn", warning);
}

async function copyRecords(context: ServeContext): Promise<void> {
  await attempt(context, "the records could not be copied", async () => await context.store.copy());
}

async function rotateLogs(context: ServeContext, stopping: AbortSignal): Promise<void> {
  await attempt(context, "logs could not be rotated", async () => {
    const { servers } = await context.store.registry.read();
    for (const server of Object.values(servers)) {
      // Skip a server that is starting, because the start reads its log from a fixed position.
      if (!isRunning(server) || server.state === "starting") continue;
      const options = { maxBytes: LOG_BYTES, keep: LOG_FILES, signal: stopping };
      await rotateLog(logPath(server.home), options).catch((error: unknown) => {
        if (stopping.aborted) return;
        logFailure(context, `server ${server.id}: its log could not be rotated`, error, { server: server.id });
      });
    }
  });
}

/**
 * How long we wait for a moment without turns, in milliseconds. After that, we drain the server even if it is in a
 * turn.
 */
const PATIENCE_MS = 5 * 60_000;
/** The shortest time between two attempts to recycle one server, in milliseconds. */
const PAUSE_MS = 60_000;
/**
 * How many health intervals the processes of an unloaded session may keep running, so that a client that reconnects
 * still finds them.
 */
const INTERVALS = 12;
/** How long a process may take to end after SIGTERM, in milliseconds. */
const GRACE_MS = 2_000;

/** The state of one launch of a server, as the upkeep knows it. All times are by `clock.now()`. */
interface LaunchState {
  /** When the launch was last seen in use. */
  usedAt?: number;
  /** Since when the server should be recycled. */
  overdueSince?: number;
  /** The earliest time of the next attempt to recycle it. */
  notBefore?: number;
  /** The size of its files in bytes, if it is over its disk limit. */
  overDisk?: number;
  /** How many times each limit of the kernel had been reached at the last look. */
  reached: Pick<LimitsReached, "memory" | "processes">;
}

/** Keeps the running servers within their limits. Call each method once per health interval. */
export class Upkeep {
  readonly #context: ServeContext;
  readonly #operations: Operations;
  readonly #processes: ServerProcesses;
  readonly #stopping: AbortSignal;
  /** By launch id. */
  readonly #launches = new Map<string, LaunchState>();
  /** By server id: the time (`clock.now()`) from which a replaced server may be replaced again. */
  readonly #resting = new Map<string, number>();
  #isRecycling = false;
  /** By process: the time (`clock.now()`) at which the process was first seen without a loaded session. */
  readonly #ownerless = new Map<string, number>();
  #egress: EgressStatus | null = null;

  constructor(context: ServeContext, operations: Operations, processes: ServerProcesses, stopping: AbortSignal) {
    this.#context = context;
    this.#operations = operations;
    this.#processes = processes;
    this.#stopping = stopping;
  }

  /** Forgets all launches except those of these servers. */
  keepOnly(servers: readonly ServerRecord[]): void {
    const launches = new Set(servers.map(({ launchId }) => launchId ?? ""));
    for (const launch of this.#launches.keys()) if (!launches.has(launch)) this.#launches.delete(launch);
  }

  #launchOf({ launchId }: ServerRecord): LaunchState {
    const state = this.#launches.get(launchId ?? "") ?? { reached: { memory: 0, processes: 0 } };
    this.#launches.set(launchId ?? "", state);
    return state;
  }

  /**
   * Unloads the sessions beyond `session.maxActive`, because clients that connect directly load sessions without limit.
   */
  async enforceCap(server: ServerRecord): Promise<void> {
    const { store, config, metrics, host, log, events } = this.#context;
    const { id } = server;
    try {
      const excess = knownLoaded(server).length - config.session.maxActive;
      if (excess <= 0) return;
      const options = { store, events, answerMs: config.health.timeoutMs };
      const { evicted } = await unloadOldest(server, excess, new Set(), options);
      metrics.series.evictions.inc(evicted.length);
      host.ring.evicted(evicted.length);
      if (evicted.length > 0)
        log("info", `server ${id} had ${countOf(excess, "session")} too many`, { server: id, evicted: evicted.length });
    } catch (error) {
      // Only log the error, because the monitor acts if the server does not answer.
      if (!isFleetError(error)) throw error;
      logFailure(this.#context, `server ${id}: its sessions could not be unloaded`, error, { server: id });
    }
  }

  /** Restarts the proxy of the servers with an allow-list if the proxy has died, and counts the requests to it. */
  async watchEgress(servers: readonly Pick<ServerRecord, "sandbox">[]): Promise<void> {
    if (!servers.some(({ sandbox }) => sandbox?.network === "allow-list")) return;
    const { ensureProxy } = await import("../sandbox/network/egress.js");
    const now = await ensureProxy(networkFolder(this.#context.stateRoot));
    // On the first look of this process, count none of the earlier requests. A new proxy has counted from zero, so
    // count all its requests.
    const last = this.#egress ?? now;
    this.#egress = now;
    for (const result of EGRESS_RESULTS) {
      const before = last.id === now.id ? last.counts[result] : 0;
      this.#context.metrics.series.egress.inc({ result }, now.counts[result] - before);
    }
  }

  /**
   * Stops users' own servers that have had no session in memory and no use for `pool.idleTimeout`, and have no client
   * at the end of that time. When a user comes back, the fleet starts the server again.
   *
   * @param ownPorts the local ports of the supervisor's own connections, which are not clients
   */
  stopIdle(servers: readonly ServerRecord[], ownPorts: ReadonlySet<number>): void {
    const { config, clock, pool, log } = this.#context;
    const { idleTimeoutMs } = config.pool;
    if (idleTimeoutMs === null) return;
    const now = clock.now();
    const due = servers.filter((server) => {
      if (server.user === null) return false;
      const launch = this.#launchOf(server);
      const isUsed = isClaimed(server) || knownLoaded(server).length > 0 || usedSessions(server).size > 0;
      if (launch.usedAt === undefined || isUsed) launch.usedAt = now;
      return now - launch.usedAt > idleTimeoutMs;
    });
    if (due.length === 0) return;
    // Look at connections only if a server is due, because reading the kernel's table of sockets takes milliseconds.
    const connections = system().processes.connectedPorts(new Set(due.map(({ port }) => port ?? 0)), ownPorts);
    for (const server of due) {
      const { id, port } = server;
      if (connections.has(port ?? 0)) {
        this.#launchOf(server).usedAt = now;
        continue;
      }
      this.#operations.begin("it could not be stopped while idle", id, async () => {
        const drainTimeoutMs = config.drain.timeoutMs;
        const { outcome } = await pool.stop(id, { drainTimeoutMs, force: false, signal: this.#stopping });
        log("info", `server ${id} was idle and was stopped`, { server: id, outcome });
      });
    }
  }

  /**
   * Reports when servers reach their limits. Stops a server whose files take more than `sandbox.disk` and still grow,
   * because the kernel limits only single files. The fleet refuses new turns on that server until there is room again.
   */
  checkLimits(servers: readonly ServerRecord[]): void {
    for (const server of servers) {
      this.#countReached(server);
      const max = server.sandbox?.limits?.disk ?? null;
      if (max === null || isClaimed(server)) continue;
      this.#operations.begin(
        "its files could not be measured",
        server.id,
        async () => await this.#checkDisk(server, max),
      );
    }
    const over = [...this.#launches.values()].filter(({ overDisk }) => overDisk !== undefined);
    this.#context.metrics.series.overDisk.set(over.length);
  }

  /** Counts and logs how often the kernel killed a process, or refused to start one, since the last look. */
  #countReached(server: ServerRecord): void {
    const { limits } = server.sandbox ?? {};
    if (limits === undefined || limits.cgroups.length === 0) return;
    const { log, metrics } = this.#context;
    const launch = this.#launchOf(server);
    const before = launch.reached;
    const now = limitsReached(limits, server.process?.pid ?? null);
    launch.reached = now;
    for (const limit of ["memory", "processes"] as const) {
      const count = now[limit] - before[limit];
      if (count <= 0) continue;
      metrics.series.serverLimits.inc({ limit }, count);
      log("warn", `server ${server.id} reached sandbox.${limit}`, { server: server.id, limit, count });
    }
  }

  async #checkDisk(server: ServerRecord, max: number): Promise<void> {
    const { pool, log, metrics } = this.#context;
    const { id } = server;
    const launch = this.#launchOf(server);
    const before = launch.overDisk;
    const bytes = await pool.disk.bytesOf(server);
    if (bytes <= max) {
      delete launch.overDisk;
      if (before !== undefined) log("info", `server ${id} is below sandbox.disk again`, { server: id, bytes });
      return;
    }
    launch.overDisk = bytes;
    const sizes = `its files take ${describeBytes(bytes)}, and sandbox.disk allows ${writeSize(max)}`;
    if (before === undefined) {
      metrics.series.serverLimits.inc({ limit: "disk" });
      log("warn", `server ${id} takes no new turns: ${sizes}`, { server: id, bytes, max });
    }
    if (before === undefined || bytes <= before) return;
    const { cut } = await pool.stop(id, { drainTimeoutMs: 0, force: false, signal: NEVER, stays: true });
    log("error", `server ${id} was stopped, because it still wrote: ${sizes}`, { server: id, bytes, max, cut });
  }

  /**
   * Replaces servers that are too big or too old, because the runtime never gives memory back. It replaces one server
   * at a time, in a moment without turns if such a moment comes soon enough. It never cuts a turn.
   */
  recycle(servers: readonly ServerRecord[]): void {
    const now = this.#context.clock.now();
    const due = servers.flatMap((server) => {
      const reason = this.#reasonToRecycle(server);
      if (reason === null || isClaimed(server)) return [];
      const launch = this.#launchOf(server);
      launch.overdueSince ??= now;
      launch.notBefore ??= now;
      return [{ server, reason, launch, notBefore: launch.notBefore, overdueMs: now - launch.overdueSince }];
    });
    // Begin with the server that was tried longest ago, because a server that always has turns must not block the
    // others.
    due.sort((a, b) => a.notBefore - b.notBefore);
    for (const { server, reason, launch, notBefore, overdueMs } of due) {
      const earliest = Math.max(notBefore, this.#resting.get(server.id) ?? 0);
      if (this.#isRecycling || now < earliest || this.#operations.isBusy(server.id)) continue;
      this.#isRecycling = true;
      this.#operations.begin("it could not be recycled", server.id, async () => {
        launch.notBefore = this.#context.clock.now() + PAUSE_MS;
        try {
          await this.#recycleOne(server, reason, launch, overdueMs > PATIENCE_MS);
        } finally {
          this.#isRecycling = false;
        }
      });
    }
  }

  #reasonToRecycle(server: ServerRecord): RecycleReason | null {
    const { maxMemoryBytes, maxAgeMs } = this.#context.config.recycle;
    if (maxMemoryBytes !== null && this.#processes.memoryOf(server) > maxMemoryBytes) return "memory";
    if (maxAgeMs !== null && Date.now() - Date.parse(server.startedAt ?? "") > maxAgeMs * spread(server)) return "age";
    return null;
  }

  async #recycleOne(
    server: ServerRecord,
    reason: RecycleReason,
    launch: LaunchState,
    impatient: boolean,
  ): Promise<void> {
    const { pool, config, clock, metrics, log } = this.#context;
    const { id } = server;
    if (!impatient && (await sessionsInTurn(server, config.health.timeoutMs)).length > 0) {
      launch.notBefore = clock.now() + config.health.intervalMs;
      return;
    }
    log("info", `recycling server ${id}: ${reason}`, { server: id, reason, serverPid: server.process?.pid });
    const drainTimeoutMs = config.drain.timeoutMs;
    const result = await pool.recycle(id, { drainTimeoutMs, late: "leave", signal: this.#stopping });
    if (result.kind === "replaced") {
      metrics.series.recycles.inc({ reason });
      this.#resting.set(id, clock.now() + PAUSE_MS);
      const { process, port } = result.server;
      log("info", `server ${id} was recycled`, { server: id, reason, serverPid: process?.pid, port });
    } else log("info", `server ${id} is recycled later: ${result.kind}`, { server: id, reason });
  }

  /**
   * Ends the processes that unloaded sessions left running. The runtime (1.0.85) ends the MCP servers of a session that
   * it unloads, but not the commands that run in the background. The full CLI (1.0.102) leaves those in process
   * sessions of their own.
   *
   * A process belongs to the session that `COPILOT_AGENT_SESSION_ID` names in its environment or in that of an
   * ancestor. The environment of commands from `session.shell.exec` names none. They end once the server has had no
   * loaded session for as long.
   */
  endLeftovers(servers: readonly ServerRecord[]): void {
    const { config, clock } = this.#context;
    const now = clock.now();
    const seen = new Set<string>();
    for (const server of servers) {
      const processes = this.#processes.of(server.launchId ?? "");
      const own = ownProcesses(server, processes);
      const children = processes.filter(({ identity }) => !own.has(identity.pid));
      const due = withoutOwner(server, children).filter(({ identity }) => {
        const key = `${identity.pid} ${identity.startTicks}`;
        seen.add(key);
        const since = this.#ownerless.get(key) ?? now;
        this.#ownerless.set(key, since);
        return now - since >= INTERVALS * config.health.intervalMs;
      });
      if (due.length === 0 || isClaimed(server)) continue;
      this.#operations.begin("processes that its sessions left behind could not be ended", server.id, async () => {
        await this.#end(server, due);
      });
    }
    for (const key of this.#ownerless.keys()) if (!seen.has(key)) this.#ownerless.delete(key);
  }

  async #end(server: ServerRecord, due: readonly LaunchedProcess[]): Promise<void> {
    // Check again, because a session may have been loaded since these processes were chosen.
    const left = withoutOwner(server, due);
    if (left.length === 0) return;
    const identities = left.map(({ identity }) => identity);
    await endProcesses(identities, GRACE_MS);
    const sessions = [...new Set(left.flatMap(({ sessionId }) => sessionId ?? []))];
    const pids = identities.map(({ pid }) => pid);
    const what = left.length === 1 ? "1 process" : `${left.length} processes`;
    const fields = { server: server.id, pids, sessions };
    this.#context.log("info", `server ${server.id}: ended ${what} of unloaded sessions`, fields);
  }
}

/**
 * A factor between 1 and 1.1, constant for one launch, so that servers of the same age are not all replaced at once.
 */
function spread({ launchId }: ServerRecord): number {
  return 1 + Number.parseInt((launchId ?? "0").slice(0, 4), 16) / 0xffff / 10;
}

/** The PIDs of a server and of its sandbox's processes: the server's bridge, and its ancestors in the launch. */
function ownProcesses({ process }: ServerRecord, processes: readonly LaunchedProcess[]): ReadonlySet<number> {
  const found = new Set(process?.bridge === undefined ? [] : [process.bridge.pid]);
  for (let at = process?.pid; at !== undefined && !found.has(at); ) {
    found.add(at);
    at = processes.find(({ identity }) => identity.pid === at)?.parent;
  }
  return found;
}

/** @returns the processes that cannot belong to a session that is loaded or being opened */
function withoutOwner(server: ServerRecord, children: readonly LaunchedProcess[]): LaunchedProcess[] {
  if (children.length === 0) return [];
  const used = usedSessions(server);
  let isEmpty: boolean | undefined;
  return children.filter(({ sessionId }) => {
    // The process can change its environment, which contains this id. So validate the id before it becomes part of a
    // path.
    if (sessionId !== null && isSessionId(sessionId)) {
      const isLoaded = server.process !== null && isLoadedBy(server.home, sessionId, server.process);
      return !used.has(sessionId) && !isLoaded;
    }
    isEmpty ??= used.size === 0 && loadedSessions(server).length === 0;
    return isEmpty;
  });
}
