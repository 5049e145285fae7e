import { abortable, deadline, isTimeout } from "../base/clock.js";
import { FleetError, isFleetError, quote, type Suggestion } from "../base/errors.js";
import { serverIdOf } from "../base/ids.js";
import { addUp, counted, type OnProgress } from "../base/progress.js";
import type { SandboxReport } from "../base/sandbox.js";
import type { ServerRecord, TokenSource } from "../base/server.js";
import { compareText } from "../base/values/text.js";
import { checkSandbox } from "../sandbox/sandbox.js";
import { admits, closedBy, mapConcurrently, STARTS_AT_ONCE } from "./admission.js";
import { DiskMeter } from "./disk-meter.js";
import { nextSharedServer, ServerPlacer } from "./placement.js";
import { type Recycled, type RecycleOptions, recycleServer } from "./recycle.js";
import { repairRecords } from "./repair.js";
import { isBroken, type ServerView, viewServer } from "./server.js";
import { type SpawnOptions, type StartRequest, type StartResult, startServer, tokenSourceOf } from "./start.js";
import { type StopOptions, type Stopped, stopRecorded } from "./stop.js";
import type { PoolContext } from "./surroundings.js";

const SHARED_START_MS = 30_000;

/** All recorded servers, and the only way to start, stop and list them. */
export class Pool {
  readonly placer: ServerPlacer;
  readonly disk: DiskMeter;
  readonly #context: PoolContext;
  /** The starts in progress that callers share (see `sharedUntil`), by server id. */
  readonly #starting = new Map<string, Promise<StartResult>>();

  constructor(context: PoolContext) {
    this.#context = context;
    this.disk = new DiskMeter(context);
    this.placer = new ServerPlacer(context.store, context.config);
  }

  /** The user's own server. Starts it if it does not run. */
  async serverOf(user: string, options: SpawnOptions): Promise<StartResult> {
    return await this.#start({ ...options, id: serverIdOf(user), user, isolation: "per-user" });
  }

  /**
   * The users' own servers. Starts the servers that do not run, several at a time. If some cannot be started, throws an
   * error that names them, and the other servers run.
   */
  async serversOf(
    users: readonly string[],
    { onProgress, ...options }: SpawnOptions & { onProgress?: OnProgress | undefined },
  ): Promise<StartResult[]> {
    const failures: { user: string; error: FleetError }[] = [];
    const progressOf = addUp(onProgress, users.length);
    const results = await mapConcurrently(users, STARTS_AT_ONCE, async (user) => {
      try {
        return await counted(progressOf(user), 1, async () => await this.serverOf(user, options));
      } catch (error) {
        if (!isFleetError(error)) throw error;
        failures.push({ user, error });
        return null;
      }
    });
    const [first] = failures;
    if (first === undefined) return results.filter((result) => result !== null);
    if (users.length === 1) throw first.error;
    const each = failures.map(({ user, error }) => `${user}: ${error.message}`).join(" ");
    const others = failures.length === users.length ? "" : " The others run.";
    const message = `${failures.length} of ${users.length} servers could not be started.${others} ${each}`;
    throw first.error.reworded(() => ({ message }));
  }

  async addShared(options: SpawnOptions): Promise<StartResult> {
    for (;;) {
      const id = nextSharedServer(await this.#context.store.registry.read());
      const result = await this.#startShared(id, options);
      if (result.created) return result; // otherwise another command has just started this server, so take the next id
    }
  }

  /**
   * The shared server for a user's next session, by the configured strategy (`pool.strategy`). Starts it if it does not
   * run.
   */
  async sharedServerFor(user: string, options: SpawnOptions): Promise<StartResult> {
    return await this.#startShared(await this.placer.place(user), options);
  }

  /** The shared server with this id. Starts it if it does not run. */
  async shared(id: string, options: SpawnOptions): Promise<ServerRecord> {
    return (await this.#startShared(id, options)).server;
  }

  async #startShared(id: string, options: SpawnOptions): Promise<StartResult> {
    return await this.#start({ ...options, id, user: null, isolation: "shared" });
  }

  /**
   * The sandbox of a server that starts now.
   *
   * @throws FLEET_SANDBOX_UNUSABLE if no server would start, because the configuration needs another sandbox
   */
  async sandbox(): Promise<SandboxReport> {
    return await checkSandbox(this.#context);
  }

  /** The source of a server's GitHub token; null if the server has none. @throws FleetError as `tokenSourceOf` */
  tokenSourceOf(server: ServerRecord): TokenSource | null {
    return tokenSourceOf(this.#context, server);
  }

  /** Starts a recorded server again on its home, and on its port if that is still free. */
  async startAgain(
    { id, user, isolation }: ServerRecord,
    options: SpawnOptions & { supervised?: boolean },
  ): Promise<StartResult> {
    return await this.#start({ ...options, id, user, isolation });
  }

  async #start(request: StartRequest): Promise<StartResult> {
    const running = await this.#running(request);
    if (running !== null) return { server: running, created: false };
    const { sharedUntil } = request;
    if (sharedUntil === undefined) return await startServer(this.#context, request);
    return await this.#startOnce(request, sharedUntil);
  }

  /**
   * Starts the server, or waits for the shared start of another caller. The caller's signal ends only the caller's
   * wait.
   */
  async #startOnce(request: StartRequest, until: AbortSignal): Promise<StartResult> {
    const { id, signal } = request;
    signal.throwIfAborted();
    const start = async () => {
      using limit = deadline(SHARED_START_MS, until);
      return await startServer(this.#context, { ...request, signal: limit.signal });
    };
    let starting = this.#starting.get(id);
    if (starting === undefined) {
      starting = start().finally(() => void this.#starting.delete(id));
      this.#starting.set(id, starting);
    }
    try {
      return await abortable(starting, signal);
    } catch (error) {
      if (!signal.aborted || !isTimeout(error)) throw error;
      const suggestions: Suggestion[] = ["copilotfleet ps"];
      const message = `Server ${id} did not start in time.`;
      throw new FleetError("FLEET_SERVER_START_TIMEOUT", message, { cause: error, suggestions });
    }
  }

  /**
   * The server if it runs and a start would return it unchanged. Null if it does not run, if another command has a
   * claim on it, if the pool is closed, or if the request has a token or a `cwd`. Most servers run, so most calls cost
   * only this one read.
   */
  async #running({ id, token, cwd }: StartRequest): Promise<ServerRecord | null> {
    // Leave these settings to `startServer`, which compares them with those of the running server.
    if (token !== undefined || cwd !== undefined) return null;
    const registry = await this.#context.store.registry.read();
    const server = registry.servers[id];
    const isUsable = server !== undefined && closedBy(registry) === null && admits(registry, server);
    return isUsable && server.claim === null ? server : null;
  }

  /** All recorded servers, oldest first. Repairs broken records if the store can be written. */
  async list(signal: AbortSignal): Promise<ServerView[]> {
    let { servers } = await this.#context.store.registry.read();
    if (Object.values(servers).some(isBroken)) {
      await this.repair(signal).catch((error: unknown) => {
        if (!isFleetError(error, "FLEET_STATE_UNWRITABLE")) throw error;
      });
      ({ servers } = await this.#context.store.registry.read());
    }
    return Object.values(servers)
      .sort((a, b) => compareText(a.createdAt, b.createdAt) || compareText(a.id, b.id))
      .map(viewServer);
  }

  /**
   * Repairs every record that a crash left broken, or only the record of the server `only`. Several repairs and other
   * commands may run at the same time.
   */
  async repair(signal: AbortSignal, only?: string): Promise<string[]> {
    return await repairRecords(this.#context, signal, only);
  }

  async find(id: string): Promise<ServerRecord> {
    const found = (await this.#context.store.registry.read()).servers[id];
    if (found === undefined) throw serverNotFound(`server ${quote(id)}`);
    return found;
  }

  /** Replaces a running server with a new process on the same home. */
  async recycle(id: string, options: RecycleOptions): Promise<Recycled> {
    return await recycleServer(this.#context, id, options);
  }

  async all(): Promise<ServerRecord[]> {
    const { servers } = await this.#context.store.registry.read();
    return Object.values(servers).filter(({ state }) => state !== "stopped");
  }

  /** Drains and stops a server and frees its port. Its home stays. */
  async stop(id: string, options: StopOptions): Promise<Stopped> {
    return await stopRecorded(this.#context, id, options);
  }

  async stopAll(ids: readonly string[], options: StopOptions): Promise<Stopped[]> {
    const progressOf = addUp(options.onProgress, ids.length);
    return await mapConcurrently(ids, ids.length, async (id) => {
      return await counted(progressOf(id), 1, async (onProgress) => await this.stop(id, { ...options, onProgress }));
    });
  }
}

/** @param start a command that starts the server, as a further suggestion */
export function serverNotFound(what: string, start?: Suggestion): FleetError {
  return new FleetError("FLEET_NAME_NOT_FOUND", `There is no ${what}.`, {
    suggestions: ["copilotfleet ps # lists servers", ...(start === undefined ? [] : [start])],
  });
}

/** @param candidates all servers that `reference` could mean */
export function serverUnclear(reference: string, candidates: readonly string[]): FleetError {
  const message = `${quote(reference)} matches ${candidates.length} servers: ${candidates.join(", ")}.`;
  return new FleetError("FLEET_NAME_NOT_FOUND", message, {
    suggestions: ["Give more of the id.", "copilotfleet ps"],
  });
}
