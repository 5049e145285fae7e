import { isFleetError } from "../../errors.js";
import type { Registry } from "../../model/registry.js";
import type { ServerRecord } from "../../model/server.js";
import { closedBy } from "../../pool/admission.js";
import { isClaimed } from "../../pool/claims/held-claim.js";
import { endHung, recordCrashLoop, recordHealth } from "../../pool/health.js";
import { sharedServerId } from "../../pool/placement.js";
import { isBroken, isDesired } from "../../pool/server.js";
import { deadline } from "../../runtime/deadline.js";
import { ownLimit } from "../../runtime/launch/own-limits.js";
import type { ServeContext } from "../context.js";
import type { Operations } from "../operations.js";
import type { RestartReason } from "../report/metrics.js";
import { backoffMs } from "./backoff.js";
import { ServerMonitor } from "./monitor.js";
import type { Probed } from "./prober.js";

/** After a process closed its connection, we look at it again after these times in milliseconds. */
const STILL_ENDING_MS = [20, 60, 200];

/**
 * Compares what should run with what is running. Starts servers that should run, watches each running server with a
 * monitor, and ends servers that hang. Trouble with one server never delays another.
 */
export class Reconciler {
  readonly #context: ServeContext;
  readonly #operations: Operations;
  readonly #stopping: AbortSignal;
  /** Requests a look at the registry right now. */
  readonly #wake: () => void;
  /** By launch id. */
  readonly #monitors = new Map<string, ServerMonitor>();
  /** When to restart each server that has ended, by its id; in milliseconds of `performance.now()`. */
  readonly #due = new Map<string, number>();
  /** The reason why each server that we are about to restart has ended, for the metrics. */
  readonly #reasons = new Map<string, RestartReason>();
  /** How many starts in a row failed here, by server id. */
  readonly #refused = new Map<string, number>();
  /** How many starts in a row failed because of a limit of this machine. We do not give the server up because of these. */
  readonly #starved = new Map<string, number>();
  readonly #crashLoops = new Set<string>();
  /** The earliest time to retry a repair that failed, by server id; in milliseconds of `performance.now()`. */
  readonly #unrepaired = new Map<string, number>();

  constructor(context: ServeContext, operations: Operations, stopping: AbortSignal, wake: () => void) {
    this.#context = context;
    this.#operations = operations;
    this.#stopping = stopping;
    this.#wake = wake;
  }

  get monitors(): readonly ServerMonitor[] {
    return [...this.#monitors.values()];
  }

  /** Looks at everything once. Slow work continues in the background, one operation per server. */
  async reconcile(): Promise<Registry> {
    const registry = await this.#context.store.registry.read();
    const servers = Object.values(registry.servers);
    // Look at each process only once: with many servers, this is much of what `serve` costs while nothing happens.
    const broken = new Set(servers.filter(isBroken));
    for (const server of broken) if (!isClaimed(server)) this.#repair(server);
    await this.#watch(servers.filter((server) => isUp(server) && !broken.has(server)));
    if (closedBy(registry) === null) {
      for (const server of servers) this.#bringUp(server);
      this.#keepWarm(registry);
    }
    return registry;
  }

  #repair(server: ServerRecord): void {
    const { pool, store, config, log } = this.#context;
    const { id, state, process } = server;
    const retryAt = this.#unrepaired.get(id);
    if (retryAt !== undefined && performance.now() < retryAt) return;
    this.#operations.begin("it could not be repaired", id, async () => {
      this.#unrepaired.set(id, performance.now() + config.health.intervalMs);
      if (state === "ready" || state === "unhealthy") {
        this.#reasons.set(id, "crash");
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
      this.#wake();
    });
  }

  /** Keeps one monitor for each launch that runs, and closes all others. */
  async #watch(servers: readonly ServerRecord[]): Promise<void> {
    const running = new Map(servers.map((server) => [server.launchId ?? "", server]));
    for (const [launchId, monitor] of this.#monitors) {
      if (running.has(launchId)) continue;
      this.#monitors.delete(launchId);
      await monitor.close();
    }
    for (const [launchId, server] of running) {
      const known = this.#monitors.get(launchId);
      // The server is well, but its record is not: an earlier supervisor wrote it, or we could not change it in time.
      if (known?.answers === true && server.state === "unhealthy") this.#recordHealth(server, null);
      if (known !== undefined) continue;
      this.#monitors.set(launchId, this.#monitor(server));
      this.#context.log("info", `watching server ${server.id}`, { server: server.id, serverPid: server.process?.pid });
    }
  }

  #monitor(server: ServerRecord): ServerMonitor {
    const { config, log } = this.#context;
    const { id } = server;
    return new ServerMonitor(server, config.health, {
      probed: (result) => this.#measure(result, id),
      sick: (failures, reason) => {
        log("warn", `server ${id} did not answer (${failures} of ${config.health.failures})`, { server: id, reason });
        this.#recordHealth(server, `${reason} (${failures} of ${config.health.failures})`);
      },
      well: () => {
        log("info", `server ${id} answers again`, { server: id });
        this.#recordHealth(server, null);
      },
      hung: (reason) => {
        this.#operations.begin("it hangs and could not be ended", id, async () => await this.#endHung(server, reason));
      },
      gone: () => {
        this.#wake();
        // A process that ends closes its connections before all of its threads are gone. Until then it counts as alive.
        for (const ms of STILL_ENDING_MS) setTimeout(this.#wake, ms).unref();
      },
    });
  }

  #recordHealth(server: ServerRecord, reason: string | null): void {
    const { store } = this.#context;
    this.#operations.begin("its health could not be recorded", server.id, async () => {
      await recordHealth(store, server, reason);
    });
  }

  #measure(result: Probed, id: string): void {
    const { metrics, log } = this.#context;
    if (result.kind === "ok" || result.kind === "failed") metrics.probed(result.kind, result.seconds);
    if (result.kind === "unknown") log("warn", `server ${id} could not be probed: ${result.reason}`, { server: id });
  }

  async #endHung(server: ServerRecord, reason: string): Promise<void> {
    const { id, process } = server;
    if (!(await endHung(this.#context, server, reason))) return;
    this.#context.log("error", `server ${id} hung and was ended: ${reason}`, { server: id, serverPid: process?.pid });
    this.#reasons.set(id, "hang");
  }

  /** Starts a server that should run and does not, when it is due. */
  #bringUp(server: ServerRecord): void {
    const { config } = this.#context;
    const { id } = server;
    const crashes = Math.max(server.crashes ?? 0, this.#refused.get(id) ?? 0);
    const down = server.state === "failed" || server.state === "stopped";
    if (!down || !isDesired(server) || isClaimed(server)) {
      this.#due.delete(id);
      // Somebody started it by hand, so its failures no longer count.
      if (!down && (server.crashes ?? 0) === 0) this.#forgive(id);
      return;
    }
    if (server.state === "failed" && crashes > config.health.restarts) {
      this.#due.delete(id);
      this.#giveUp(server);
      return;
    }
    const due = this.#due.get(id) ?? this.#schedule(id, server.state === "failed" ? crashes : 0);
    if (performance.now() < due) return;
    this.#operations.begin("it could not be started", id, async () => await this.#start(server));
  }

  #schedule(id: string, crashes: number): number {
    const waitMs = backoffMs(crashes, this.#context.config.health.backoffMs);
    const due = performance.now() + waitMs;
    this.#due.set(id, due);
    if (waitMs > 0) setTimeout(this.#wake, waitMs).unref();
    return due;
  }

  async #start(server: ServerRecord): Promise<void> {
    const { pool, config, metrics, log } = this.#context;
    const { id } = server;
    this.#due.delete(id);
    if (server.state === "failed") metrics.restarted(this.#reasons.get(id) ?? "start");
    this.#reasons.delete(id);
    log("info", `starting server ${id}`, { server: id, crashes: server.crashes ?? 0 });
    using limit = deadline(config.health.startupMs, this.#stopping);
    try {
      const how = { signal: limit.signal, calledOff: this.#stopping, supervised: true };
      const { server: started } = await pool.startAgain(server, how);
      this.#refused.delete(id);
      this.#starved.delete(id);
      log("info", `server ${id} is ready`, { server: id, serverPid: started.process?.pid, port: started.port });
    } catch (error) {
      if (this.#stopping.aborted) throw error;
      if (ownLimit(error) !== undefined || isFleetError(error, "FLEET_STORAGE_UNUSABLE")) {
        const starved = (this.#starved.get(id) ?? 0) + 1;
        this.#starved.set(id, starved);
        this.#schedule(id, starved + 1);
        throw error;
      }
      // The start was refused before anything was recorded, for example because there is no token. It still counts.
      const refused = (this.#refused.get(id) ?? server.crashes ?? 0) + 1;
      this.#refused.set(id, refused);
      this.#schedule(id, refused);
      throw error;
    }
  }

  #forgive(id: string): void {
    this.#refused.delete(id);
    this.#crashLoops.delete(id);
  }

  #giveUp(server: ServerRecord): void {
    const { id, crashes } = server;
    if (this.#crashLoops.has(id) || this.#operations.isBusy(id)) return;
    this.#crashLoops.add(id);
    const { store, config, metrics, log } = this.#context;
    metrics.crashLooped();
    log("error", `server ${id} ended ${crashes} times in a row and is not started again`, {
      server: id,
      failure: server.failure,
    });
    this.#operations.begin("its crash loop could not be recorded", id, async () => {
      await recordCrashLoop(store, server, config.health.restarts);
    });
  }

  /** Keeps `pool.warm` of the shared servers running before anybody asks for them. */
  #keepWarm({ servers }: Registry): void {
    const { config, pool } = this.#context;
    if (config.isolation !== "shared") return;
    for (let index = 1; index <= Math.min(config.pool.warm, config.pool.servers); index++) {
      const id = sharedServerId(index);
      const known = servers[id];
      // Retry a server that never came up like one that ended. For any other server, its record decides.
      if (known?.state === "failed" && known.desired === undefined) this.#bringUp({ ...known, desired: "running" });
      if (known !== undefined) continue;
      this.#operations.begin("it could not be started", id, async () => {
        using limit = deadline(config.health.startupMs, this.#stopping);
        await pool.shared(id, { signal: limit.signal, calledOff: this.#stopping });
      });
    }
  }

  async close(): Promise<void> {
    await Promise.all(this.monitors.map(async (monitor) => await monitor.close()));
    this.#monitors.clear();
  }
}

/** Whether the server is recorded as running. If it is not broken, it does run. */
function isUp({ state }: ServerRecord): boolean {
  return state === "ready" || state === "unhealthy";
}
