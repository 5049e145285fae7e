import { setTimeout as delay } from "node:timers/promises";
import { type Clock, deadline } from "../base/clock.js";
import { isFleetError } from "../base/errors.js";
import type { Registry, ServerRecord } from "../base/server.js";
import type { Config } from "../config/schema.js";
import { RawConnection } from "../runtime/client/raw-connection.js";
import { ownLimit } from "../runtime/launch/launch.js";
import { provenEndpoint } from "../runtime/process/probe.js";
import { isAlive } from "../runtime/process/process-table.js";
import { closedBy } from "../servers/admission.js";
import { endHung, recordCrashLoop, recordHealth } from "../servers/repair.js";
import { isBroken, isClaimed, isDesired } from "../servers/server.js";
import type { LoopTimer, Operations, ServeContext } from "./context.js";
import type { RestartReason } from "./report/metrics.js";

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
      this.#restarts.forgive(id);
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
    const { store, config, metrics, log } = this.#context;
    metrics.series.crashLoops.inc();
    log("error", `server ${id} ended ${crashes} times in a row and is not started again`, {
      server: id,
      failure: server.failure,
    });
    this.#operations.begin("its crash loop could not be recorded", id, async () => {
      await recordCrashLoop(store, server, config.health.restarts);
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

/** After this many pings, we open a new connection, to check that the server still accepts connections. */
const PINGS_PER_CONNECTION = 12;
/** If a probe ends more than this many milliseconds after its deadline, this process was suspended for a while. */
const LATE_MS = 500;
/**
 * The longest wait after a failed probe, in milliseconds. It is short, because we probe a server in trouble more often.
 */
const RETRY_MS = 1_000;
/** After a server has closed our connection, we check its process again after each of these times, in milliseconds. */
const STILL_ENDING_MS = [20, 60, 200];

/**
 * Watches one launch of one server until {@link close}: records whether the server answers, and ends it if it hangs.
 */
export class ServerMonitor {
  readonly server: ServerRecord;
  readonly #context: ServeContext;
  readonly #operations: Operations;
  readonly #restarts: Restarts;
  readonly #timer: LoopTimer;
  readonly #closed = new AbortController();
  /** Resolves after the first probe, whatever its result. */
  readonly first: Promise<void>;
  readonly #ended: Promise<void>;
  #connection: RawConnection | null = null;
  /** How many pings were sent over the connection. */
  #pings = 0;
  /** How many probes in a row failed. */
  #failures = 0;
  #answered = false;

  constructor(
    server: ServerRecord,
    context: ServeContext,
    operations: Operations,
    restarts: Restarts,
    timer: LoopTimer,
  ) {
    this.server = server;
    this.#context = context;
    this.#operations = operations;
    this.#restarts = restarts;
    this.#timer = timer;
    this.first = this.#probe();
    this.#ended = this.#run();
  }

  /** The local port of the monitor's own connection. Other connections to the server belong to clients. */
  get localPort(): number | undefined {
    return this.#connection?.localPort;
  }

  /** Whether the server answered the last probe. */
  get answers(): boolean {
    return this.#answered;
  }

  async #run(): Promise<void> {
    const { signal } = this.#closed;
    const { intervalMs } = this.#context.config.health;
    await this.first;
    // Spread the probes over the interval, so that the probes of many servers do not come at the same time.
    for (let pauseMs = Math.random() * intervalMs; !signal.aborted; pauseMs = intervalMs) {
      const waitMs = this.#failures > 0 ? Math.min(intervalMs, RETRY_MS) : pauseMs;
      await delay(waitMs, undefined, { signal }).catch(() => undefined); // after close(), the condition ends the loop
      if (!signal.aborted) await this.#probe();
    }
  }

  async #probe(): Promise<void> {
    const begun = performance.now();
    const problem = await this.#ping();
    if (this.#closed.signal.aborted) return;
    const { metrics, log } = this.#context;
    const { id } = this.server;
    const seconds = (performance.now() - begun) / 1000;
    if (problem === null) {
      metrics.probed("ok", seconds);
      if (this.#failures > 0) {
        log("info", `server ${id} answers again`, { server: id });
        this.record(null);
      }
      this.#failures = 0;
      this.#answered = true;
      return;
    }
    const verdict = this.#explain(problem.error, seconds);
    if (verdict === "gone") wakeUntilEnded(this.#timer);
    else if ("unknown" in verdict) log("warn", `server ${id} could not be probed: ${verdict.unknown}`, { server: id });
    else {
      metrics.probed("failed", seconds);
      this.#failures += 1;
      this.#answered = false;
      this.#failed(verdict.failed);
    }
  }

  /** Pings the server once. @returns null if it answered in time */
  async #ping(): Promise<{ error: unknown } | null> {
    using limit = deadline(this.#context.config.health.timeoutMs, this.#closed.signal);
    try {
      const connection = await this.#connected(limit.signal);
      await connection.request("ping", { message: "probe" }, limit.signal);
      this.#pings += 1;
      return null;
    } catch (error) {
      await this.#disconnect();
      return { error };
    }
  }

  /**
   * Why a probe failed. `unknown`: we learned nothing about the server, because this process was suspended during the
   * probe, or has reached a limit.
   */
  #explain(error: unknown, seconds: number): "gone" | { failed: string } | { unknown: string } {
    const { process } = this.server;
    const own = ownLimit(error);
    if (own !== undefined) return { unknown: `this process has reached a limit (${own})` };
    try {
      if (process === null || !isAlive(process)) return "gone";
    } catch (failure) {
      return { unknown: failure instanceof Error ? failure.message : String(failure) };
    }
    if (seconds * 1000 > this.#context.config.health.timeoutMs + LATE_MS)
      return { unknown: "this process was suspended for a while" };
    return { failed: error instanceof Error ? error.message : String(error) };
  }

  async #connected(signal: AbortSignal): Promise<RawConnection> {
    if (this.#connection !== null && this.#pings < PINGS_PER_CONNECTION) return this.#connection;
    const connection = await RawConnection.open(provenEndpoint(this.server), signal, { lasting: true });
    await this.#disconnect();
    this.#connection = connection;
    this.#pings = 0;
    void connection.closed.then(() => {
      if (this.#connection !== connection) return; // we closed it ourselves
      this.#connection = null;
      wakeUntilEnded(this.#timer); // the process has probably ended
    });
    return connection;
  }

  async #disconnect(): Promise<void> {
    const connection = this.#connection;
    this.#connection = null;
    await connection?.[Symbol.asyncDispose]();
  }

  #failed(reason: string): void {
    const { log, config } = this.#context;
    const { id, process } = this.server;
    const most = config.health.failures;
    if (this.#failures < most) {
      const count = `${this.#failures} of ${most}`;
      log("warn", `server ${id} did not answer (${count})`, { server: id, reason });
      this.record(`${reason} (${count})`);
      return;
    }
    this.#operations.begin("it hangs and could not be ended", id, async () => {
      if (!(await endHung(this.#context, this.server, reason))) return;
      log("error", `server ${id} hung and was ended: ${reason}`, { server: id, serverPid: process?.pid });
      this.#restarts.note(id, "hang");
    });
  }

  /** Records why the server does not answer. Null records that it answers. */
  record(reason: string | null): void {
    this.#operations.begin("its health could not be recorded", this.server.id, async () => {
      await recordHealth(this.#context.store, this.server, reason);
    });
  }

  async close(): Promise<void> {
    this.#closed.abort();
    await this.#disconnect();
    await this.#ended;
  }
}

/** Checks all servers now, and a few times soon after, because a process closes its connections before it is dead. */
function wakeUntilEnded(timer: LoopTimer): void {
  timer.wake();
  for (const ms of STILL_ENDING_MS) timer.wakeAfter(ms);
}

/** The planned start of one server, and the starts before it. */
interface Starts {
  /** The time (`clock.now()`) at which to start the server. */
  due?: number | undefined;
  /** Why the server ended, if we are about to restart it. The metrics show it. */
  reason?: RestartReason | undefined;
  /**
   * How many starts in a row failed. The server's record does not count a start that failed before anything was
   * recorded.
   */
  refused?: number;
  /**
   * How many starts in a row failed because of a limit of this machine. Such starts are not a reason to give up on a
   * server.
   */
  starved: number;
  isGivenUp: boolean;
}

/** Decides when to restart a server that has ended, and when to give up on it. */
export class Restarts {
  readonly #clock: Clock;
  readonly #health: Config["health"];
  readonly #timer: LoopTimer;
  /** By server id. */
  readonly #starts = new Map<string, Starts>();

  constructor({ clock, config }: Pick<ServeContext, "clock" | "config">, timer: LoopTimer) {
    this.#clock = clock;
    this.#health = config.health;
    this.#timer = timer;
  }

  #of(id: string): Starts {
    const starts = this.#starts.get(id) ?? { starved: 0, isGivenUp: false };
    this.#starts.set(id, starts);
    return starts;
  }

  /** Records why a server has ended. */
  note(id: string, reason: RestartReason): void {
    this.#of(id).reason = reason;
  }

  /** Cancels the next start of a server, because it already runs or should not run. */
  cancel(id: string): void {
    this.#of(id).due = undefined;
  }

  /** Forgets the failures of a server that runs. */
  forgive(id: string): void {
    const starts = this.#of(id);
    delete starts.refused;
    starts.starved = 0;
    starts.isGivenUp = false;
  }

  isHopeless(server: ServerRecord): boolean {
    return server.state === "failed" && this.#inARow(server) > this.#health.restarts;
  }

  /** @returns false if we had already given up on the server */
  giveUp(id: string): boolean {
    const starts = this.#of(id);
    const isNew = !starts.isGivenUp;
    starts.isGivenUp = true;
    return isNew;
  }

  /** Whether it is time to start the server. The first call sets that time. */
  isDue(server: ServerRecord): boolean {
    const crashes = server.state === "failed" ? this.#inARow(server) : 0;
    return this.#clock.now() >= (this.#of(server.id).due ?? this.#schedule(server.id, crashes));
  }

  #inARow({ id, crashes }: ServerRecord): number {
    return Math.max(crashes ?? 0, this.#of(id).refused ?? 0);
  }

  begin(id: string): RestartReason {
    const starts = this.#of(id);
    const { reason = "start" } = starts;
    starts.due = undefined;
    starts.reason = undefined;
    return reason;
  }

  /**
   * Schedules the next start after a failed start. @param isStarved whether a limit of this machine made the start fail
   */
  failed({ id, crashes }: ServerRecord, isStarved: boolean): void {
    const starts = this.#of(id);
    if (isStarved) starts.starved += 1;
    else starts.refused = (starts.refused ?? crashes ?? 0) + 1;
    this.#schedule(id, isStarved ? starts.starved + 1 : (starts.refused ?? 0));
  }

  #schedule(id: string, crashes: number): number {
    const waitMs = backoffMs(crashes, Math.min(FIRST_MS, this.#health.intervalMs / 3));
    const due = this.#clock.now() + waitMs;
    this.#of(id).due = due;
    if (waitMs > 0) this.#timer.wakeAfter(waitMs);
    return due;
  }
}

/**
 * The wait before the second restart in a row, in milliseconds. It is shorter if servers are probed more often than
 * usual.
 */
const FIRST_MS = 1_000;
/** The longest wait between two starts of a server that keeps ending, in milliseconds. */
const LONGEST_MS = 60_000;

/**
 * How long to wait, in milliseconds, before we restart a server that ended `crashes` times in a row. A random factor
 * between 0.5 and 1 prevents servers that ended together from starting again together ("equal jitter",
 * https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
 */
export function backoffMs(crashes: number, baseMs: number, random: () => number = Math.random): number {
  if (crashes <= 1) return 0;
  const full = Math.min(LONGEST_MS, baseMs * 2 ** Math.min(crashes - 2, 30));
  return full * (0.5 + random() / 2);
}
