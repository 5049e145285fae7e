import { setTimeout as delay } from "node:timers/promises";
import { type Duration, LONGEST_TIMER_MS, parseDuration } from "../config/values/duration.js";
import { isFleetError, option } from "../errors.js";
import type { FrontDoor } from "../gateway/door.js";
import { SEEN_MS } from "../hosts/directory.js";
import { forgetServing, noteServing } from "../hosts/serving-note.js";
import type { Registry } from "../model/registry.js";
import type { ServerRecord } from "../model/server.js";
import { closedBy } from "../pool/admission.js";
import { isRunning } from "../pool/server.js";
import type { Stopped } from "../pool/stop/stop.js";
import { NEVER } from "../runtime/deadline.js";
import { showAddress } from "../runtime/launch/listen.js";
import type { ServeContext } from "./context.js";
import { countFailure, logFailure } from "./failures.js";
import { Reconciler } from "./health/reconciler.js";
import { Heartbeat } from "./heartbeat.js";
import { HostLock } from "./host-lock.js";
import { Operations } from "./operations.js";
import { doorListeners } from "./report/door-reports.js";
import { HealthEndpoint } from "./report/health-endpoint.js";
import { Measurements } from "./report/measurements.js";
import { ServerProcesses } from "./report/server-processes.js";
import { IdleStopper } from "./upkeep/idle-stopper.js";
import { claimUntermed, unloadTaken } from "./upkeep/new-term.js";
import { placeSessions } from "./upkeep/place-sessions.js";
import { ProcessCleanup } from "./upkeep/process-cleanup.js";
import { Recycler } from "./upkeep/recycler.js";
import { collectPeriodically, enforceCap, rotatePeriodically } from "./upkeep/scheduled.js";

export interface DrainRequest {
  /** How long turns in flight may take to end. Default: `drain.timeout` of the configuration. */
  drainTimeout?: Duration;
  /** @deprecated The same as `drainTimeout`, in milliseconds. */
  drainTimeoutMs?: number;
  /** When it aborts, everything that is left is killed at once. */
  hurry: AbortSignal;
}

export interface LeaveRequest {
  /** How long turns that came through the front door may take to end. Default: 0, which cuts them. */
  doorTimeout?: Duration;
  /** @deprecated The same as `doorTimeout`, in milliseconds. */
  doorTimeoutMs?: number;
}

export interface Drained {
  stopped: Stopped[];
  /** Servers that could not be stopped, and why. */
  failed: { id: string; error: unknown }[];
}

/** The failures of the regular checks, and the texts that we log when the checks succeed again. */
const WELL_AGAIN = {
  "the servers could not be checked": "the servers can be checked again",
  "the use of the servers could not be checked": "the servers can be checked again",
  "the shared storage is not available": "the shared storage is available again",
} as const;
type Look = keyof typeof WELL_AGAIN;

/** How often we look at the registry and the process table when nothing happens, in milliseconds. */
const TICK_MS = 1_000;
/** The supervisor is not healthy when its loop is late by more than this, in milliseconds. */
const STUCK_MS = 30_000;

/**
 * Keeps the servers of this host healthy: adopts servers that run, starts servers that should run, replaces servers that
 * hang or have grown too big, and reports on them. It may die at any moment. The servers then keep running, and the next
 * supervisor adopts them.
 */
export class Supervisor {
  readonly #context: ServeContext;
  readonly #hostLock: HostLock;
  readonly #stopping = new AbortController();
  readonly #operations: Operations;
  readonly #reconciler: Reconciler;
  readonly #recycler: Recycler;
  readonly #processCleanup: ProcessCleanup;
  readonly #idleStopper: IdleStopper;
  readonly #measurements: Measurements;
  #endpoint: HealthEndpoint | undefined;
  #door: FrontDoor | undefined;
  /** Only for a fleet on several hosts. */
  #heartbeat: Heartbeat | undefined;
  #wake: () => void = () => undefined;
  #wokenEarly = false;
  #state: "starting" | "serving" | "draining" = "starting";
  #lookedAt = performance.now();
  /** The command that had closed the pool at the last look. Null when the pool was open. */
  #closedBy: string | null = null;
  /** The error messages of the regular checks that fail at the moment. */
  readonly #troubles = new Map<Look, string>();
  #loops: Promise<unknown> = Promise.resolve();
  #closing: Promise<void> | undefined;
  readonly #lost = new AbortController();

  private constructor(context: ServeContext, hostLock: HostLock) {
    this.#context = context;
    this.#hostLock = hostLock;
    const { signal } = this.#stopping;
    this.#operations = new Operations(
      (what, server, error) => {
        // It is not trouble when the end of `serve` cancelled an operation.
        if (signal.aborted)
          context.log("info", `server ${server}: ${what}, because serve is ending`, { server, error: String(error) });
        else logFailure(context, `server ${server}: ${what}`, error, { server });
      },
      () => this.#wakeUp(),
    );
    this.#reconciler = new Reconciler(context, this.#operations, signal, () => this.#wakeUp());
    const processes = new ServerProcesses(context.stateRoot, context.config.health.intervalMs);
    this.#recycler = new Recycler(context, this.#operations, processes, signal);
    this.#processCleanup = new ProcessCleanup(context, this.#operations, processes);
    this.#idleStopper = new IdleStopper(context, this.#operations, signal);
    this.#measurements = new Measurements(context, processes);
  }

  /**
   * Takes the host lock, opens the endpoints, and adopts the servers that run. Resolves when each running server was probed
   * once.
   *
   * @throws FleetError `FLEET_SUPERVISOR_RUNNING` when another supervisor runs on this host; `FLEET_ADDRESS_TAKEN` or
   * `FLEET_ADDRESS_UNUSABLE` when it cannot listen; `FLEET_HOST_TAKEN` when another host uses this host's name;
   * `FLEET_STORAGE_UNUSABLE` when the shared storage does not fit.
   */
  static async start(context: ServeContext, signal: AbortSignal): Promise<Supervisor> {
    const hostLock = await HostLock.take(context.store);
    const supervisor = new Supervisor(context, hostLock);
    try {
      noteServing(context.config, context.stateRoot);
    } catch (error) {
      // The note only guards against mistakes. `serve` does not depend on it, and may be what frees space on the disk.
      logFailure(context, "the settings of this serve could not be recorded", error);
    }
    try {
      await supervisor.#open(signal);
    } catch (error) {
      await supervisor.leave();
      throw error;
    }
    return supervisor;
  }

  async #open(signal: AbortSignal): Promise<void> {
    const { config, metrics, openDoor } = this.#context;
    this.#endpoint = await HealthEndpoint.open({
      address: config.serve.metrics,
      metrics,
      healthy: () => this.#unhealthy(),
      ready: () => this.#unready(),
      onError: (error) => logFailure(this.#context, "the health endpoint failed", error),
      signal,
    });
    await this.#hostLock.announce({ metrics: this.metricsAddress });
    await this.#enter();
    const registry = await this.#reconciler.reconcile();
    await Promise.all(this.#reconciler.monitors.map(({ first }) => first));
    await this.#survey(registry);
    if (openDoor !== null) {
      this.#door = await openDoor({ ...doorListeners(this.#context), signal });
      await this.#hostLock.announce({ metrics: this.metricsAddress, door: this.doorAddress });
    }
    await this.#heartbeat?.announce(this.#door?.address ?? null);
    this.#state = "serving";
    const { signal: stopping } = this.#stopping;
    this.#loops = Promise.all([
      this.#run(),
      collectPeriodically(this.#context, stopping),
      rotatePeriodically(this.#context, stopping),
    ]);
  }

  /** From here on, the other hosts count this host as alive. It takes no users before its front door is announced. */
  async #enter(): Promise<void> {
    const { store, config, directory } = this.#context;
    const { hosts } = store;
    if (hosts === null) return;
    await placeSessions(this.#context);
    this.#heartbeat = await Heartbeat.enter(this.#context, hosts, {
      onTermOver: () => {
        // Without shared storage, other hosts cannot take what is on this host's own disk.
        if (config.storage.shared !== null) this.#door?.leaveServers();
      },
      onNewTerm: () => void unloadTaken(this.#context, directory),
    });
    if (config.storage.shared !== null) {
      await claimUntermed(this.#context, { host: hosts.own, term: this.#heartbeat.term });
    }
  }

  /** `host:port` of the metrics and health endpoints. */
  get metricsAddress(): string {
    return this.#endpoint === undefined ? "" : showAddress(this.#endpoint.address);
  }

  /** `host:port` of the front door. Null when there is none. */
  get doorAddress(): string | null {
    return this.#door === undefined ? null : showAddress(this.#door.address);
  }

  /** How many servers have a monitor. */
  get watched(): number {
    return this.#reconciler.monitors.length;
  }

  /** Aborts when another supervisor has taken over because this process did not run for too long. */
  get lost(): AbortSignal {
    return this.#lost.signal;
  }

  async #run(): Promise<void> {
    let surveyed = performance.now();
    while (!this.#stopping.signal.aborted) {
      await this.#pause();
      if (this.#stopping.signal.aborted) return;
      const registry = await this.#attempt("the servers could not be checked", async () => {
        const found = await this.#reconciler.reconcile();
        this.#closedBy = closedBy(found);
        this.#lookedAt = performance.now();
        if (!this.#hostLock.isHeld(found)) this.#lost.abort();
        return found;
      });
      if (this.#lost.signal.aborted) return;
      if (registry === null || performance.now() - surveyed < this.#context.config.health.intervalMs) continue;
      surveyed = performance.now();
      await this.#attempt(
        "the shared storage is not available",
        async () => await this.#context.directory.assertStorage(),
      );
      await this.#attempt("the use of the servers could not be checked", async () => await this.#survey(registry));
    }
  }

  /** Logs a lasting failure, such as a full disk, once and not every second. Returns null when `work` fails. */
  async #attempt<T>(look: Look, work: () => Promise<T>): Promise<T | null> {
    try {
      const result = await work();
      if (this.#troubles.delete(look)) this.#context.log("info", WELL_AGAIN[look]);
      return result;
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      if (this.#troubles.get(look) === message) countFailure(this.#context, error);
      else logFailure(this.#context, look, error);
      this.#troubles.set(look, message);
      return null;
    }
  }

  async #survey(registry: Registry): Promise<void> {
    const running = Object.values(registry.servers).filter(isWatchable);
    const ownPorts = new Set(this.#reconciler.monitors.flatMap(({ localPort }) => localPort ?? []));
    this.#recycler.look(running);
    this.#processCleanup.look(running);
    this.#idleStopper.look(running, ownPorts);
    for (const server of running) {
      await enforceCap(this.#context, server).catch((error: unknown) => {
        // The monitor deals with a server that is unwell.
        if (!isFleetError(error)) throw error;
        logFailure(this.#context, `server ${server.id}: its sessions could not be unloaded`, error, {
          server: server.id,
        });
      });
    }
    const { clients = 0, turns = 0 } = this.#door ?? {};
    await this.#measurements.look(registry, running, { draining: this.#state === "draining", clients, turns });
  }

  async #pause(): Promise<void> {
    if (!this.#wokenEarly) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, TICK_MS);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    this.#wokenEarly = false;
    this.#wake = () => undefined;
  }

  #wakeUp(): void {
    this.#wokenEarly = true;
    this.#wake();
  }

  #unhealthy(): string[] {
    const lateMs = performance.now() - this.#lookedAt;
    if (this.#state !== "serving" || lateMs < STUCK_MS) return [];
    return [`the servers were last checked ${Math.round(lateMs / 1000)} s ago`];
  }

  #unready(): string[] {
    const reasons = this.#unhealthy();
    if (this.#state === "starting") reasons.push("the servers are being adopted");
    if (this.#state === "draining") reasons.push("the pool is being drained");
    else if (this.#closedBy !== null) reasons.push(`the pool was closed by ${this.#closedBy}`);
    for (const [look, message] of this.#troubles) reasons.push(`${look}: ${message}`);
    if (this.#measurements.diskProblem !== null) reasons.push(this.#measurements.diskProblem);
    return reasons;
  }

  /**
   * Admits nothing new, waits for turns in flight, unloads sessions, stops every server, and leaves. The next supervisor
   * starts the servers that should run again.
   *
   * @throws FleetError when the store fails. The next supervisor then takes care of what is still running.
   */
  async drain(request: DrainRequest): Promise<Drained> {
    try {
      return await this.#drain(request);
    } catch (error) {
      // Nothing can be recorded, so nothing can be stopped in an orderly way.
      await this.leave().catch((late: unknown) =>
        logFailure(this.#context, "the host lock could not be released", late),
      );
      throw error;
    }
  }

  async #drain(request: DrainRequest): Promise<Drained> {
    const { hurry } = request;
    const drainTimeoutMs = readTimeout(request, this.#context.config.drain.timeoutMs);
    const { store, pool, log } = this.#context;
    await this.#hostLock.closePool();
    this.#state = "draining";
    await this.#heartbeat
      ?.closeToUsers()
      .catch((error: unknown) =>
        logFailure(this.#context, "the drain could not be announced to the other hosts", error),
      );
    // Do not wait here: the drain of the servers waits for all turns, including those of the front door.
    const closing = this.#door?.close({ timeoutMs: drainTimeoutMs });
    await this.#stopLoops();
    const { servers } = await store.registry.read();
    const ids = Object.values(servers)
      .filter(needsStop)
      .map(({ id }) => id);
    log("info", `draining ${ids.length} servers`, { servers: ids.length, drainTimeoutMs });
    const result: Drained = { stopped: [], failed: [] };
    await Promise.all(
      ids.map(async (id) => {
        try {
          const stopped = await pool.stop(id, { drainTimeoutMs, force: false, signal: NEVER, hurry, stays: true });
          result.stopped.push(stopped);
          const cut = stopped.cut.length > 0;
          log(cut ? "error" : "info", `server ${id} was ${stopped.outcome}`, { server: id, cut: stopped.cut });
        } catch (error) {
          result.failed.push({ id, error });
          logFailure(this.#context, `server ${id} could not be stopped`, error, { server: id });
        }
      }),
    );
    await closing;
    await this.#close({ gone: result.failed.length === 0 });
    return result;
  }

  /**
   * Leaves the servers to the next supervisor as they are. Turns that came through the front door may end first, because
   * they depend on this process.
   */
  async leave({ doorTimeout, doorTimeoutMs = 0 }: LeaveRequest = {}): Promise<void> {
    await this.#door?.close({ timeout: doorTimeout ?? doorTimeoutMs });
    await this.#stopLoops();
    await this.#close({ gone: false });
  }

  async #stopLoops(): Promise<void> {
    this.#stopping.abort(new Error("the supervisor is ending"));
    this.#wakeUp();
    await this.#loops;
    await this.#operations.settled();
    await this.#reconciler.close();
  }

  /** @param how.gone whether nothing is left here for which other hosts would have to wait */
  async #close(how: { gone: boolean }): Promise<void> {
    this.#closing ??= this.#closeOnce(how);
    await this.#closing;
  }

  async #closeOnce({ gone }: { gone: boolean }): Promise<void> {
    try {
      await this.#heartbeat?.leave({ gone });
      // Keep the pool closed until every process of this host that still relies on the term has looked again.
      if (gone && this.#context.directory.isShared) await delay(SEEN_MS);
      await this.#hostLock.leave();
    } finally {
      this.#forgetServing();
      await this.#endpoint?.close();
    }
  }

  #forgetServing(): void {
    try {
      forgetServing(this.#context.stateRoot);
    } catch (error) {
      logFailure(this.#context, "the record of the settings of this serve could not be removed", error);
    }
  }
}

function isWatchable(server: ServerRecord): boolean {
  return (server.state === "ready" || server.state === "unhealthy") && isRunning(server);
}

function needsStop({ state, process }: ServerRecord): boolean {
  return state !== "stopped" && (state !== "failed" || process !== null);
}

function readTimeout({ drainTimeout, drainTimeoutMs }: DrainRequest, configuredMs: number): number {
  if (drainTimeout === undefined) return drainTimeoutMs ?? configuredMs;
  return parseDuration(drainTimeout, { name: option("drainTimeout"), maxMs: LONGEST_TIMER_MS, orZero: true });
}
