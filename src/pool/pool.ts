import { compareText } from "../config/values/text.js";
import { FleetError, isFleetError, quote } from "../errors.js";
import type { Placement } from "../model/placement.js";
import type { Registry } from "../model/registry.js";
import type { ServerRecord, TokenSource } from "../model/server.js";
import { tokenSourceFromConfig } from "../models/github-token.js";
import { mapConcurrently, STARTS_AT_ONCE } from "./concurrency.js";
import { leastLoadedServer, nextSharedServer, rendezvousChoice, sharedServerId, sharedServerIds } from "./placement.js";
import { type Replaced, type ReplaceOptions, recycleServer } from "./recycle/recycle.js";
import { repairRecords } from "./repair/repair.js";
import { isBroken, type ServerView, serverIdOf, viewServer } from "./server.js";
import { type StarterContext, type StartRequest, type StartResult, startServer } from "./start/start.js";
import { type StopOptions, type Stopped, stopRecorded } from "./stop/stop.js";

export interface SpawnOptions {
  /** The source of the server's GitHub token. Default: the recorded source, or else the configured one. */
  token?: TokenSource | undefined;
  /** The token itself, with `token: {from: "caller"}`. Never recorded. */
  tokenValue?: string | undefined;
  /** Working folder of the server. */
  cwd?: string | undefined;
  /** Aborts together with `signal` when the start is no longer wanted, so that it does not count as a crash. */
  calledOff?: AbortSignal | undefined;
  signal: AbortSignal;
}

export type Strategy = StarterContext["config"]["pool"]["strategy"];

/** The server for a user's next session. */
export interface Route {
  serverId: string;
  /** Null with isolation `per-user`, where there is nothing to choose. */
  strategy: Strategy | null;
  /** For people: the end of the sentence "that server, because …". */
  reason: string;
}

/** All recorded servers, and the only way to start, stop and list them. */
export class Pool {
  readonly #context: StarterContext;

  constructor(context: StarterContext) {
    this.#context = context;
  }

  /** The server of a user, which is started if it does not run. @throws as {@link startServer}. */
  async serverOf(user: string, options: SpawnOptions): Promise<StartResult> {
    return await this.#start({ id: serverIdOf(user), user, isolation: "per-user" }, options);
  }

  /**
   * The servers of many users, which are started concurrently. If some cannot be started, the others still run.
   *
   * @throws FleetError with the code of the first failure, and the message of each.
   */
  async serversOf(users: readonly string[], options: SpawnOptions): Promise<StartResult[]> {
    const failures: { user: string; error: FleetError }[] = [];
    const results = await mapConcurrently(users, STARTS_AT_ONCE, async (user) => {
      try {
        return await this.serverOf(user, options);
      } catch (error) {
        if (!isFleetError(error)) throw error;
        failures.push({ user, error });
        return null;
      }
    });
    const [first] = failures;
    if (first === undefined) return results.filter((result) => result !== null);
    const each = failures.map(({ user, error }) => `${user}: ${error.message}`).join(" ");
    const message = `${failures.length} of ${users.length} servers could not be started. The others run. ${each}`;
    throw new FleetError(first.error.code, message, { cause: first.error, suggestions: first.error.suggestions });
  }

  /** Starts one more shared server. @throws as {@link startServer}. */
  async addShared(options: SpawnOptions): Promise<StartResult> {
    for (;;) {
      const id = nextSharedServer(await this.#context.store.registry.read());
      const result = await this.#start({ id, user: null, isolation: "shared" }, options);
      if (result.created) return result; // otherwise another command has just added this one
    }
  }

  /**
   * The shared server for a user's next session, by the configured strategy. It is started if it does not run.
   *
   * @throws as {@link startServer}.
   */
  async sharedServerFor(user: string, options: SpawnOptions): Promise<StartResult> {
    const id = await this.sharedServerIdFor(user);
    return await this.#start({ id, user: null, isolation: "shared" }, options);
  }

  /**
   * Chooses the server for a user's next session, and gives the reason. Starts nothing and records nothing.
   *
   * @param options.strategy used instead of the configured one
   * @param options.on another host and its registry, used instead of this host's
   */
  async route(
    user: string,
    options: { strategy?: Strategy; on?: { host: string; registry: Registry } },
  ): Promise<Route> {
    const { store, config } = this.#context;
    const { strategy = config.pool.strategy, on } = options;
    if (config.isolation === "per-user") {
      return { serverId: serverIdOf(user), strategy: null, reason: "it is the user's own (isolation per-user)" };
    }
    const registry = on?.registry ?? (await store.registry.read());
    const ids = sharedServerIds(registry, config.pool.servers);
    switch (strategy) {
      case "sticky": {
        const recorded = await this.#recorded(user, ids, on?.host);
        if (recorded !== null) return { serverId: recorded, strategy, reason: "the user was placed there before" };
        const reason = `it has the highest score for this user among ${ids.length}`;
        return { serverId: rendezvousChoice(user, ids), strategy, reason };
      }
      case "least-loaded": {
        const reason = `it has the fewest sessions in memory among ${ids.length}`;
        return { serverId: leastLoadedServer(registry, ids), strategy, reason };
      }
      case "round-robin": {
        const turn = registry.placed ?? 0;
        const serverId = ids[turn % ids.length] ?? sharedServerId(1);
        return { serverId, strategy, reason: `it is next in turn, after ${turn} placements` };
      }
    }
  }

  /** The shared server of `host` (by default this host) that a user was placed on, if it is one of `ids`. */
  async #recorded(user: string, ids: readonly string[], host?: string): Promise<string | null> {
    const placement = await this.#context.store.placements.read(user);
    const serverId = this.#isAt(placement, host) ? (placement?.serverId ?? null) : null;
    return serverId !== null && ids.includes(serverId) ? serverId : null;
  }

  #isAt(placement: Placement | null, host = this.#context.store.hosts?.own): boolean {
    return placement?.host === undefined || placement.host === host;
  }

  /** Chooses this host's shared server for a user's next session, and records what the strategy needs. Starts nothing. */
  async sharedServerIdFor(user: string): Promise<string> {
    const { store, config } = this.#context;
    const registry = await store.registry.read();
    const ids = sharedServerIds(registry, config.pool.servers);
    switch (config.pool.strategy) {
      case "sticky": {
        // The choice is recorded, so that users stay when servers are added. Only the users of a server that is gone move.
        const recorded = await this.#recorded(user, ids);
        if (recorded !== null) return recorded;
        const id = rendezvousChoice(user, ids);
        const before = await store.placements.read(user);
        // A user who was placed on another host stays there.
        if (this.#isAt(before)) await store.placements.record(user, before, { ...before, serverId: id });
        return id;
      }
      case "least-loaded":
        return leastLoadedServer(registry, ids);
      case "round-robin": {
        const turn = await store.registry.update((draft) => {
          const placed = draft.placed ?? 0;
          draft.placed = placed + 1;
          return placed;
        });
        return ids[turn % ids.length] ?? sharedServerId(1);
      }
    }
  }

  /** The shared server with this id, which is started if it does not run. @throws as {@link startServer}. */
  async shared(id: string, options: SpawnOptions): Promise<ServerRecord> {
    return (await this.#start({ id, user: null, isolation: "shared" }, options)).server;
  }

  /** Starts a recorded server again on its home, and on its port if that is still free. @throws as {@link startServer}. */
  async startAgain(server: ServerRecord, options: SpawnOptions & { supervised?: boolean }): Promise<StartResult> {
    const { id, user, isolation } = server;
    return await this.#start({ id, user, isolation, supervised: options.supervised ?? false }, options);
  }

  async #start(request: StartRequest, options: SpawnOptions): Promise<StartResult> {
    // On a shared server, each session has the token of its user. The server itself has none, unless it was given one.
    const configured =
      request.isolation === "shared" ? null : tokenSourceFromConfig(this.#context.config.auth, request.user);
    const { token, tokenValue, cwd, calledOff } = options;
    const full = { ...request, token, tokenValue, cwd, calledOff };
    return await startServer(this.#context, full, configured, options.signal);
  }

  /**
   * All recorded servers in their present state, oldest first. Repairs broken records. If the store cannot be written, it
   * still lists the servers.
   */
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
   * Repairs every record that a crash left broken: adopts servers whose starter died, clears away dead servers, frees
   * their ports, and ends half-done replacements. With `only`, repairs the record of that server alone. Resolves with the
   * ids that it touched. Safe to run beside itself and any other command.
   */
  async repair(signal: AbortSignal, only?: string): Promise<string[]> {
    return await repairRecords(this.#context, signal, only);
  }

  /**
   * The recorded server with this id, or the only one whose id begins with it.
   *
   * @throws FleetError `FLEET_SERVER_NOT_FOUND` when there is none, or when several ids begin with it.
   */
  async find(idOrPrefix: string): Promise<ServerRecord> {
    const { servers } = await this.#context.store.registry.read();
    const matches = Object.values(servers).filter(({ id }) => id.startsWith(idOrPrefix));
    const found = matches.find(({ id }) => id === idOrPrefix) ?? (matches.length === 1 ? matches[0] : undefined);
    if (found === undefined || idOrPrefix === "") throw serverNotFound(`server ${quote(idOrPrefix)}`, matches);
    return found;
  }

  /** Replaces a running server by a new process on the same home. @throws as {@link recycleServer}. */
  async recycle(id: string, options: ReplaceOptions): Promise<Replaced> {
    return await recycleServer(this.#context, id, options);
  }

  /** All recorded servers that are not stopped. */
  async all(): Promise<ServerRecord[]> {
    const { servers } = await this.#context.store.registry.read();
    return Object.values(servers).filter(({ state }) => state !== "stopped");
  }

  /** Drains and stops a server and frees its port. Its home stays. @throws as {@link stopRecorded}. */
  async stop(id: string, options: StopOptions): Promise<Stopped> {
    return await stopRecorded(this.#context, id, options);
  }

  /** Stops many servers concurrently. @throws as {@link stopRecorded}. */
  async stopAll(ids: readonly string[], options: StopOptions): Promise<Stopped[]> {
    return await mapConcurrently(ids, ids.length, async (id) => await this.stop(id, options));
  }
}

function serverNotFound(what: string, matches: ServerRecord[]): FleetError {
  const several = matches.length > 1 ? `: it could be ${matches.map(({ id }) => id).join(", ")}` : "";
  return new FleetError("FLEET_SERVER_NOT_FOUND", `There is no ${what}${several}.`, {
    suggestions: ["copilotfleet ps", "copilotfleet spawn --user USER"],
  });
}
