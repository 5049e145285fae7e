import { quote } from "../base/errors.js";
import type { Registry } from "../base/server.js";
import { closedBy } from "../servers/admission.js";
import { isRunning } from "../servers/server.js";
import { restoreModes } from "../store/file/state-folder.js";
import { LoopTimer, Operations, RegularChecks, type ServeContext } from "./context.js";
import { isUp, Reconciler } from "./health.js";
import type { HostLock } from "./host-lock.js";
import { Measurements, ServerProcesses } from "./report/measurements.js";
import { PERIODIC, repeat, Upkeep } from "./upkeep.js";

/** The interval between two checks of the registry and the process table when nothing happens, in milliseconds. */
const TICK_MS = 1_000;
/** If the last check of the servers is older than this, in milliseconds, the supervisor counts as unhealthy. */
const STUCK_MS = 30_000;

/** Does a supervisor's regular work: every second, at every health interval, and on a schedule. */
export class SupervisorLoop {
  readonly #context: ServeContext;
  readonly #hostLock: HostLock;
  readonly #stopping = new AbortController();
  readonly #timer: LoopTimer;
  readonly #operations: Operations;
  readonly #reconciler: Reconciler;
  readonly #processes: ServerProcesses;
  readonly #upkeep: Upkeep;
  readonly #measurements: Measurements;
  readonly #checks: RegularChecks;
  readonly #lost = new AbortController();
  #running: Promise<unknown> = Promise.resolve();
  #checkedAt: number;
  /** The command that had closed the pool at the last check. Null when the pool was open. */
  #closedBy: string | null = null;

  constructor(context: ServeContext, hostLock: HostLock) {
    this.#context = context;
    this.#hostLock = hostLock;
    const { signal } = this.#stopping;
    this.#timer = new LoopTimer(context.clock);
    this.#checkedAt = context.clock.now();
    this.#operations = new Operations(context, this.#timer, signal);
    this.#reconciler = new Reconciler(context, this.#operations, this.#timer, signal);
    this.#processes = new ServerProcesses(context.stateRoot);
    this.#upkeep = new Upkeep(context, this.#operations, this.#processes, signal);
    this.#measurements = new Measurements(context, this.#processes);
    this.#checks = new RegularChecks(context);
  }

  get watched(): number {
    return this.#reconciler.monitors.length;
  }

  /** Aborts when this process no longer holds the host lock. */
  get lost(): AbortSignal {
    return this.#lost.signal;
  }

  /** Adopts the servers that run, and checks everything once. Resolves when each running server was probed once. */
  async first(): Promise<void> {
    const registry = await this.#reconciler.reconcile();
    await Promise.all(this.#reconciler.monitors.map(({ first }) => first));
    await this.#survey(registry);
  }

  start(): void {
    const { signal } = this.#stopping;
    const periodic = Object.values(PERIODIC).map(async (task) => await repeat(task, this.#context, signal));
    this.#running = Promise.all([this.#run(), ...periodic]);
  }

  /** Ends the regular work. Resolves when no operation on a server is in progress and no server has a monitor. */
  async stop(): Promise<void> {
    this.#stopping.abort(new Error("the supervisor is ending"));
    this.#timer.wake();
    await this.#running;
    await this.#operations.settled();
    await this.#reconciler.close();
    // No process may follow on this host. So send the lines of the ledger that killed processes left.
    await this.#context.store.usage.settled();
  }

  /** The reasons to replace this process. Empty if it is healthy. */
  unhealthy(): string[] {
    const lateMs = this.#context.clock.now() - this.#checkedAt;
    if (this.#context.state.phase !== "serving" || lateMs < STUCK_MS) return [];
    return [`the servers were last checked ${Math.round(lateMs / 1000)} s ago`];
  }

  /** The reasons to send no new work to this host. Empty if it is ready. */
  unready(): string[] {
    const { phase } = this.#context.state;
    const { diskProblem } = this.#measurements;
    const pool = this.#closedBy === null ? [] : [`the pool was closed by ${this.#closedBy}`];
    return [
      ...this.unhealthy(),
      ...(phase === "starting" ? ["the servers are being adopted"] : []),
      ...(phase === "draining" ? ["the pool is being drained"] : pool),
      ...this.#checks.failing,
      ...(diskProblem === null ? [] : [diskProblem]),
    ];
  }

  async #run(): Promise<void> {
    const { config, directory } = this.#context;
    let surveyed = this.#context.clock.now();
    while (!this.#stopping.signal.aborted) {
      await this.#timer.next(TICK_MS);
      if (this.#stopping.signal.aborted) return;
      const isDue = this.#context.clock.now() - surveyed >= config.health.intervalMs;
      await this.#checks.run("the modes of the state folder could not be restored", async () =>
        this.#restoreModes({ deep: isDue }),
      );
      const registry = await this.#checks.run("the servers could not be checked", async () => await this.#reconcile());
      if (this.#lost.signal.aborted) return;
      if (registry === null || !isDue) continue;
      surveyed = this.#context.clock.now();
      await this.#checks.run("the shared storage is not available", async () => await directory.assertStorage());
      await this.#checks.run("the use of the servers could not be checked", async () => await this.#survey(registry));
    }
  }

  /** Undoes what an agent under Landlock did to the modes of the state folder. */
  #restoreModes(extent: { deep: boolean }): void {
    for (const { path, was } of restoreModes(this.#context.stateRoot, extent))
      this.#context.log("warn", `the mode of ${quote(path)} was ${was}, and is restored`, { path, was });
  }

  async #reconcile(): Promise<Registry> {
    const registry = await this.#reconciler.reconcile();
    this.#closedBy = closedBy(registry);
    this.#checkedAt = this.#context.clock.now();
    if (!this.#hostLock.isHeld(registry)) this.#lost.abort();
    return registry;
  }

  /** Measures how the servers are used. Recycles, stops or cleans up each server that needs it. */
  async #survey(registry: Registry): Promise<void> {
    const running = Object.values(registry.servers).filter((server) => isUp(server) && isRunning(server));
    const ownPorts = new Set(this.#reconciler.monitors.flatMap(({ localPort }) => localPort ?? []));
    this.#processes.read();
    this.#upkeep.keepOnly(running);
    this.#upkeep.recycle(running);
    this.#upkeep.endLeftovers(running);
    this.#upkeep.stopIdle(running, ownPorts);
    this.#upkeep.checkLimits(running);
    for (const warning of this.#context.store.takeWarnings()) this.#context.log("warn", warning);
    for (const server of running) await this.#upkeep.enforceCap(server);
    await this.#measurements.look(registry, running);
    await this.#checks.run(
      "the proxy of servers could not be started",
      async () => await this.#upkeep.watchEgress(running),
    );
  }
}
