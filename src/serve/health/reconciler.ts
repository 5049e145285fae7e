import { deadline } from "../../base/clock.js";
import { isFleetError } from "../../base/errors.js";
import type { Registry, ServerRecord } from "../../base/server.js";
import { ownLimit } from "../../runtime/launch/launch.js";
import { closedBy } from "../../servers/admission.js";
import { recordCrashLoop } from "../../servers/health.js";
import { isBroken, isClaimed, isDesired } from "../../servers/server.js";
import type { Operations, ServeContext } from "../context.js";
import type { LoopTimer } from "../failures.js";
import { Restarts, ServerMonitor } from "./monitor.js";

/** How long a server may take to start, in milliseconds. */
const STARTUP_MS = 30_000;

/**
 * Compares what should run with what is running. Starts servers that should run, watches each running server with a
 * monitor, and ends servers that hang. Trouble with one server never delays the work on another.
 */
export class Reconciler {
  readonly #context: ServeContext;
  readonly #operations: Operations;
  readonly #timer: LoopTimer;
  readonly #stopping: AbortSignal;
  readonly #restarts: Restarts;
  /** By launch id. */
  readonly #monitors = new Map<string, ServerMonitor>();
  /** By server id: the earliest time (`clock.now()`) at which to retry a failed repair. */
  readonly #unrepaired = new Map<string, number>();

  constructor(context: ServeContext, operations: Operations, timer: LoopTimer, stopping: AbortSignal) {
    this.#context = context;
    this.#operations = operations;
    this.#timer = timer;
    this.#stopping = stopping;
    this.#restarts = new Restarts(context, timer);
  }

  get monitors(): readonly ServerMonitor[] {
    return [...this.#monitors.values()];
  }

  /**
   * Makes one comparison, and resolves with the registry that it read. Slow work, such as a start, continues in the
   * background, with at most one operation per server.
   */
  async reconcile(): Promise<Registry> {
    const registry = await this.#context.store.registry.read();
    const servers = Object.values(registry.servers);
    // Check each process only once, because with many servers these checks are most of the work of an idle `serve`.
    const broken = new Set(servers.filter(isBroken));
    for (const server of broken) if (!isClaimed(server)) this.#repair(server);
    await this.#watch(servers.filter((server) => isUp(server) && !broken.has(server)));
    if (closedBy(registry) === null) for (const server of servers) this.#bringUp(server);
    return registry;
  }

  #repair(server: ServerRecord): void {
    const { pool, store, config, clock, log } = this.#context;
    const { id, state, process } = server;
    const retryAt = this.#unrepaired.get(id);
    if (retryAt !== undefined && clock.now() < retryAt) return;
    this.#operations.begin("it could not be repaired", id, async () => {
      this.#unrepaired.set(id, clock.now() + config.health.intervalMs);
      if (isUp(server)) {
        this.#restarts.note(id, "crash");
        if (retryAt === undefined) log("warn", `server ${id} ended by itself`, { server: id, serverPid: process?.pid });
      } else if (retryAt === undefined)
        log("warn", `server ${id} was left in state ${state} by a command that did not finish`, { server: id });
      await pool.repair(this.#stopping, id);
      this.#unrepaired.delete(id);
      const now = (await store.registry.read()).servers[id];
      log("info", `server ${id} was repaired and is ${now?.state}`, {
        server: id,
        state: now?.state,
        ...(now?.failure == null ? {} : { failure: now.failure }),
      });
      this.#timer.wake();
    });
  }

  /** Keeps one monitor for each launch that runs, and closes all others. */
  async #watch(servers: readonly ServerRecord[]): Promise<void> {
    const { log } = this.#context;
    const running = new Map(servers.map((server) => [server.launchId ?? "", server]));
    for (const [launchId, monitor] of this.#monitors) {
      if (running.has(launchId)) continue;
      this.#monitors.delete(launchId);
      await monitor.close();
    }
    for (const [launchId, server] of running) {
      const known = this.#monitors.get(launchId);
      // Correct the record, because the server answers. An earlier supervisor recorded the server as unhealthy, or this
      // supervisor failed to record that it answers again.
      if (known?.answers === true && server.state === "unhealthy") known.record(null);
      if (known !== undefined) continue;
      const monitor = new ServerMonitor(server, this.#context, this.#operations, this.#restarts, this.#timer);
      this.#monitors.set(launchId, monitor);
      log("info", `watching server ${server.id}`, { server: server.id, serverPid: server.process?.pid });
    }
  }

  #bringUp(server: ServerRecord): void {
    const { id } = server;
    const isDown = server.state === "failed" || server.state === "stopped";
    if (!isDown || !isDesired(server) || isClaimed(server)) {
      this.#restarts.cancel(id);
      // A start by hand removes the crashes from the server's record. So remove the failures that `#restarts` has
      // counted, too.
      if (!isDown && (server.crashes ?? 0) === 0) this.#restarts.forgive(id);
    } else if (this.#restarts.isHopeless(server)) {
      this.#restarts.cancel(id);
      this.#giveUp(server);
    } else if (this.#restarts.isDue(server)) {
      this.#operations.begin("it could not be started", id, async () => await this.#start(server));
    }
  }

  async #start(server: ServerRecord): Promise<void> {
    const { pool, metrics, log } = this.#context;
    const { id } = server;
    const reason = this.#restarts.begin(id);
    if (server.state === "failed") metrics.series.restarts.inc({ reason });
    log("info", `starting server ${id}`, { server: id, crashes: server.crashes ?? 0 });
    using limit = deadline(STARTUP_MS, this.#stopping);
    try {
      const how = { signal: limit.signal, calledOff: this.#stopping, supervised: true };
      const { server: started } = await pool.startAgain(server, how);
      this.#restarts.succeeded(id);
      log("info", `server ${id} is ready`, { server: id, serverPid: started.process?.pid, port: started.port });
    } catch (error) {
      const isStarved = ownLimit(error) !== undefined || isFleetError(error, "FLEET_STORAGE_UNUSABLE");
      if (!this.#stopping.aborted) this.#restarts.failed(server, isStarved);
      throw error;
    }
  }

  #giveUp(server: ServerRecord): void {
    const { id, crashes } = server;
    if (this.#operations.isBusy(id) || !this.#restarts.giveUp(id)) return;
    const { store, metrics, log } = this.#context;
    metrics.series.crashLoops.inc();
    log("error", `server ${id} ended ${crashes} times in a row and is not started again`, {
      server: id,
      failure: server.failure,
    });
    this.#operations.begin("its crash loop could not be recorded", id, async () => {
      await recordCrashLoop(store, server);
    });
  }

  async close(): Promise<void> {
    await Promise.all(this.monitors.map(async (monitor) => await monitor.close()));
    this.#monitors.clear();
  }
}

/** Whether the server runs according to its record. The record of a crashed server is wrong until the next repair. */
export function isUp({ state }: ServerRecord): boolean {
  return state === "ready" || state === "unhealthy";
}
