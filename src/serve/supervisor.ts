import { setTimeout as delay } from "node:timers/promises";
import { NEVER } from "../base/clock.js";
import { option } from "../base/errors.js";
import { notRestricted, type SandboxReport } from "../base/sandbox.js";
import { type Duration, LONGEST_TIMER_MS, parseDuration } from "../base/values/measures.js";
import { countOf } from "../base/values/text.js";
import type { Address } from "../config/rules.js";
import { checkExposure } from "../identity/tls/exposure.js";
import { showAddress } from "../runtime/launch/listen.js";
import { ownVersion } from "../runtime/launch/versions.js";
import { hasOpenStore, OPEN_STORE } from "../servers/admission.js";
import { SEEN_MS } from "../servers/directory.js";
import type { Stopped } from "../servers/stop.js";
import { attempt, logFailure, type ServeContext, type ServedFleet, ServeState } from "./context.js";
import { Heartbeat, placeSessions, Terms } from "./heartbeat.js";
import { forgetServing, HostLock, noteServing } from "./host-lock.js";
import { SupervisorLoop } from "./loop.js";
import { FleetMetrics } from "./report/metrics.js";
import { doorListeners, HealthEndpoint, HealthProbes } from "./report/probes.js";

export interface DrainRequest {
  /** How long turns in flight may take to end. Default: `drain.timeout` of the configuration. */
  drainTimeout?: Duration;
  /** When this signal aborts, the supervisor kills all remaining servers at once. */
  hurry: AbortSignal;
}

export interface LeaveRequest {
  /** How long turns that came through the front door may take to end. Default: 0, which cuts them. */
  doorTimeout?: Duration;
}

export interface Drained {
  stopped: Stopped[];
  /** Servers that could not be stopped, and why. */
  failed: { id: string; error: unknown }[];
}

/**
 * Keeps the servers of this host healthy: adopts servers that run, starts servers that should run, and replaces servers
 * that hang or are too big. The supervisor may die at any moment. The servers keep running, and the next supervisor
 * adopts them.
 */
export class Supervisor {
  readonly #context: ServeContext;
  readonly #hostLock: HostLock;
  readonly #loop: SupervisorLoop;
  #endpoint: HealthEndpoint | undefined;
  /** The address of the HTTP API if it serves the metrics, too. */
  #metricsAddress: Address | undefined;
  /** Stops counting the agents' requests, because the fleet may outlive this supervisor. */
  #stopCounting = (): void => undefined;
  /** Set only in a fleet on several hosts. */
  #heartbeat: Heartbeat | undefined;
  #closing: Promise<void> | undefined;

  private constructor(context: ServeContext, hostLock: HostLock) {
    this.#context = context;
    this.#hostLock = hostLock;
    this.#loop = new SupervisorLoop(context, hostLock);
  }

  /**
   * Takes the host lock, opens the endpoints, and adopts the servers that run. Resolves after the first probe of each
   * server.
   */
  static async start(fleet: ServedFleet, signal: AbortSignal): Promise<Supervisor> {
    // Check the settings before taking the host lock, so that a wrong setting changes nothing.
    const { config, listen, http } = fleet;
    if (listen !== null) checkExposure(config, listen, { hasPeers: fleet.store.hosts !== null });
    if (http !== null) checkExposure(config, http, { key: "serve.http", hasPeers: false });
    const sandbox = await fleet.pool.sandbox();
    const metrics = await FleetMetrics.open({ version: ownVersion() });
    const hostLock = await HostLock.take(fleet.store);
    const context = { ...fleet, metrics, state: new ServeState() };
    const supervisor = new Supervisor(context, hostLock);
    // With this record, later commands notice that their settings differ from those of this `serve`. On a full disk,
    // `serve` must start without the record, because its gc frees space.
    await attempt(context, "the settings of this serve could not be recorded", () =>
      noteServing(fleet.config, fleet.stateRoot),
    );
    try {
      await supervisor.#open(signal);
    } catch (error) {
      await supervisor.leave();
      throw error;
    }
    logSandbox(context, sandbox);
    if (hasOpenStore(config)) context.log("warn", OPEN_STORE);
    return supervisor;
  }

  async #open(signal: AbortSignal): Promise<void> {
    const { config, metrics, log, doors, listen, http, requests, host, state } = this.#context;
    const { metrics: address } = config.serve;
    const probes = { health: this.#loop, metrics, log };
    const httpAddress = http !== null && "fd" in http ? config.serve.http : http;
    const isShared = httpAddress !== null && isSameAddress(httpAddress, address);
    if (!isShared) this.#endpoint = await HealthEndpoint.open({ ...probes, address, signal });
    if (http !== null) host.ring.start();
    await this.#hostLock.announce({ metrics: this.metricsAddress });
    await this.#enterHosts();
    await Promise.all([this.#loop.first(), this.#learnTokenEnds(signal)]);
    if (listen !== null) {
      state.door = await doors.open({ ...doorListeners(this.#context), listen, signal });
      await this.#hostLock.announce({ metrics: this.metricsAddress, door: this.doorAddress });
    }
    if (http !== null) {
      const answers = new HealthProbes(probes, { hasMetrics: isShared });
      const listeners = doorListeners(this.#context, "HTTP API");
      this.#stopCounting = requests.onOwn(({ request: { kind, outcome } }) => {
        metrics.series.agentRequestsWaiting.set(requests.size);
        if (outcome !== null) metrics.series.agentRequests.inc({ kind, outcome });
      });
      const api = await doors.openHttp({ ...listeners, listen: http, probes: answers, signal });
      state.http = api;
      if (isShared) this.#metricsAddress = api.address;
      await this.#hostLock.announce({
        metrics: this.metricsAddress,
        door: this.doorAddress,
        http: api.url,
      });
    }
    await this.#heartbeat?.announce(state.door?.address ?? null);
    state.phase = "serving";
    this.#loop.start();
  }

  /** Makes the other hosts count this host as alive. They send users here only after its front door is announced. */
  async #enterHosts(): Promise<void> {
    const { hosts } = this.#context.store;
    if (hosts === null) return;
    await placeSessions(this.#context);
    const terms = new Terms(this.#context);
    this.#heartbeat = await Heartbeat.enter(this.#context, hosts, terms);
    if (this.#context.config.storage.shared !== null) await terms.claimSessions(hosts.own, this.#heartbeat.term);
  }

  /**
   * Asks the other hosts which tokens were revoked or got an earlier expiry while this host was away, so that the front
   * door does not accept them.
   */
  async #learnTokenEnds(signal: AbortSignal): Promise<void> {
    const { store, hosts, log } = this.#context;
    if (store.hosts === null) return;
    for (const { host, error } of await hosts.learnTokenEnds(signal))
      log("warn", `the ends of tokens could not be learned from host ${host}`, { host, error: String(error) });
  }

  /** `host:port` of the metrics and health endpoints. */
  get metricsAddress(): string {
    const address = this.#endpoint?.address ?? this.#metricsAddress;
    return address === undefined ? "" : showAddress(address);
  }

  /** The URL of the HTTP API. Null if this host has none. */
  get httpUrl(): string | null {
    return this.#context.state.http?.url ?? null;
  }

  /** `host:port` of the front door. Null if this host has no front door. */
  get doorAddress(): string | null {
    const { door } = this.#context.state;
    return door === undefined ? null : showAddress(door.address);
  }

  /** How many servers have a monitor. */
  get watched(): number {
    return this.#loop.watched;
  }

  /** Aborts when another supervisor has the host lock. That happens if this process was suspended for too long. */
  get lost(): AbortSignal {
    return this.#loop.lost;
  }

  /**
   * Admits no new servers and turns, waits for turns in flight, unloads sessions, stops every server, and leaves. The
   * next supervisor restarts the servers that should run.
   *
   * @throws FleetError when the store fails. In this case, the next supervisor takes care of the servers that still
   * run.
   */
  async drain(request: DrainRequest): Promise<Drained> {
    try {
      return await this.#drain(request);
    } catch (error) {
      // The store failed, so this process can record nothing and stop nothing in an orderly way.
      await attempt(this.#context, "the host lock could not be released", () => this.leave());
      throw error;
    }
  }

  /**
   * Drains in five steps. The command `drain` takes only steps 1 and 4, because another process may supervise the host.
   *
   * 1. Close the pool. From then on, nobody on this host can start a server or begin a turn.
   * 2. Drain the front door. It refuses the prompts that wait, lets running turns end, and closes the connections. The
   *    HTTP API does the same, but answers probes until step 5.
   * 3. End the regular work, so that it does not start servers again.
   * 4. Drain each server: wait for its turns, save and unload its sessions, and stop it.
   * 5. Leave: give up the term and the host lock. Free the addresses, which agents could otherwise have taken.
   */
  async #drain({ hurry, drainTimeout = this.#context.config.drain.timeoutMs }: DrainRequest): Promise<Drained> {
    const drainTimeoutMs = readTimeout(drainTimeout, "drainTimeout");
    await this.#closePool();
    // Do not wait here: the drain of the servers waits for all turns, including those of the front door.
    const doorDrained = this.#context.state.door?.drain({ timeout: drainTimeoutMs });
    const httpDrained = this.#context.state.http?.drain({ timeout: drainTimeoutMs });
    await this.#loop.stop();
    const drained = await this.#drainServers(drainTimeoutMs, hurry);
    await doorDrained;
    await httpDrained;
    await this.#close({ gone: drained.failed.length === 0 });
    return drained;
  }

  async #closePool(): Promise<void> {
    await this.#hostLock.closePool();
    this.#context.state.phase = "draining";
    this.#context.metrics.series.draining.set(1);
    const failure = "the drain could not be announced to the other hosts";
    await attempt(this.#context, failure, () => this.#heartbeat?.closeToUsers());
  }

  async #drainServers(drainTimeoutMs: number, hurry: AbortSignal): Promise<Drained> {
    const { store, pool, log } = this.#context;
    const ids = Object.values((await store.registry.read()).servers)
      .filter(({ state, process }) => state !== "stopped" && (state !== "failed" || process !== null))
      .map(({ id }) => id);
    log("info", `draining ${countOf(ids.length, "server")}`, { servers: ids.length, drainTimeoutMs });
    const drained: Drained = { stopped: [], failed: [] };
    await Promise.all(
      ids.map(async (id) => {
        try {
          const stopped = await pool.stop(id, { drainTimeoutMs, force: false, signal: NEVER, hurry, stays: true });
          drained.stopped.push(stopped);
          const cut = stopped.cut.length > 0;
          log(cut ? "error" : "info", `server ${id} was ${stopped.outcome}`, { server: id, cut: stopped.cut });
        } catch (error) {
          drained.failed.push({ id, error });
          logFailure(this.#context, `server ${id} could not be stopped`, error, { server: id });
        }
      }),
    );
    return drained;
  }

  /**
   * Ends the supervisor. The servers keep running for the next supervisor. First, turns that came through the front
   * door have the `doorTimeout` to end, because they depend on this process.
   */
  async leave({ doorTimeout = 0 }: LeaveRequest = {}): Promise<void> {
    const timeout = readTimeout(doorTimeout, "doorTimeout");
    await Promise.all([this.#context.state.door?.drain({ timeout }), this.#context.state.http?.drain({ timeout })]);
    await this.#loop.stop();
    await this.#close({ gone: false });
  }

  async #close(how: { gone: boolean }): Promise<void> {
    this.#closing ??= this.#closeOnce(how);
    await this.#closing;
  }

  /** @param how.gone whether this host has no servers left. If so, other hosts may take over its sessions at once. */
  async #closeOnce({ gone }: { gone: boolean }): Promise<void> {
    try {
      await this.#context.state.door?.close();
      await this.#heartbeat?.leave({ gone });
      // Keep the pool closed until every process of this host has noticed that the term is over.
      if (gone && this.#context.directory.isShared) await delay(SEEN_MS);
      await this.#hostLock.leave();
    } finally {
      this.#stopCounting();
      const failure = "the record of the settings of this serve could not be removed";
      await attempt(this.#context, failure, () => forgetServing(this.#context.stateRoot));
      await this.#context.state.http?.close();
      await this.#endpoint?.close();
    }
  }
}

/** Logs how servers are restricted. Warns if nothing restricts them, or if nothing enforces a limit. */
function logSandbox({ log }: ServeContext, { mode, not, limits }: SandboxReport): void {
  const notHeld = limits?.notHeld ?? [];
  const unlimited = notHeld.length === 0 ? "" : `, and nothing enforces the limits of ${notHeld.join(" and ")}`;
  const open = not.length === 0 ? "" : ` (${notRestricted(not)})`;
  const what = mode === "none" ? "servers start without a sandbox" : `servers start in the sandbox ${mode}${open}`;
  log(mode === "none" || unlimited !== "" ? "warn" : "info", `${what}${unlimited}`, { sandbox: mode, not, notHeld });
}

/** Whether both addresses mean the same listener. With port 0, each listener gets a port of its own. */
function isSameAddress(a: Address, b: Address): boolean {
  return a.host === b.host && a.port === b.port && a.port !== 0;
}

function readTimeout(timeout: Duration, name: string): number {
  return parseDuration(timeout, { name: option(name), maxMs: LONGEST_TIMER_MS, orZero: true });
}
