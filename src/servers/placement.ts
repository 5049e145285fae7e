import type { Placement } from "../base/host.js";
import { serverIdOf } from "../base/ids.js";
import type { Registry } from "../base/server.js";
import { sha256 } from "../base/values/text.js";
import type { Config } from "../config/schema.js";
import type { Store } from "../store/store.js";
import { isRunning } from "./server.js";
import { loadedSessions } from "./stop.js";

export type Strategy = Config["pool"]["strategy"];

interface Route {
  serverId: string;
  /** Null with isolation `per-user`, which needs no strategy. */
  strategy: Strategy | null;
  /** Why the strategy chose this server, as text for people. Completes the sentence "… because …". */
  reason: string;
}

/** Chooses the server for a user's next session. Starts nothing. */
export class ServerPlacer {
  readonly #store: Store;
  readonly #config: Pick<Config, "isolation" | "pool">;

  constructor(store: Store, config: Pick<Config, "isolation" | "pool">) {
    this.#store = store;
    this.#config = config;
  }

  /**
   * Chooses a shared server of this host by the configured strategy. Records what later choices depend on: the user's
   * placement (`sticky`), or the number of choices (`round-robin`).
   */
  async place(user: string): Promise<string> {
    const { strategy } = this.#config.pool;
    if (strategy === "round-robin") {
      return await this.#store.registry.update((draft) => {
        const { serverId } = this.#choose(user, strategy, draft, null);
        draft.placed = (draft.placed ?? 0) + 1;
        return serverId;
      });
    }
    const registry = await this.#store.registry.read();
    const before = strategy === "sticky" ? await this.#store.placements.read(user) : null;
    const { serverId } = this.#choose(user, strategy, registry, before);
    // Record the choice, so that the user stays on this server when servers are added.
    if (strategy === "sticky" && isOn(before, this.#store.hosts?.own) && before?.serverId !== serverId)
      await this.#store.placements.record(user, before, { ...before, serverId });
    return serverId;
  }

  /**
   * Chooses the server without recording anything.
   *
   * @param options.strategy default: the configured strategy
   * @param options.on another host and its registry; default: this host
   */
  async foresee(
    user: string,
    options: { strategy?: Strategy; on?: { host: string; registry: Registry } },
  ): Promise<Route> {
    const { strategy = this.#config.pool.strategy, on } = options;
    if (this.#config.isolation === "per-user") {
      return { serverId: serverIdOf(user), strategy: null, reason: "it is the user's own (isolation per-user)" };
    }
    const registry = on?.registry ?? (await this.#store.registry.read());
    const placement = strategy === "sticky" ? await this.#store.placements.read(user) : null;
    return { ...this.#choose(user, strategy, registry, placement, on?.host), strategy };
  }

  #choose(
    user: string,
    strategy: Strategy,
    registry: Registry,
    placement: Placement | null,
    host = this.#store.hosts?.own,
  ): { serverId: string; reason: string } {
    const ids = sharedServerIds(registry, this.#config.pool.servers);
    switch (strategy) {
      case "sticky": {
        const recorded = isOn(placement, host) ? placement?.serverId : null;
        if (recorded != null && ids.includes(recorded))
          return { serverId: recorded, reason: "the user was placed there before" };
        const reason = `it has the highest score for this user among ${ids.length}`;
        return { serverId: rendezvousChoice(user, ids), reason };
      }
      case "least-loaded": {
        const reason = `it has the fewest sessions in memory among ${ids.length}`;
        return { serverId: leastLoadedServer(registry, ids), reason };
      }
      case "round-robin": {
        const turn = registry.placed ?? 0;
        const serverId = ids[turn % ids.length] ?? sharedServerId(1);
        return { serverId, reason: `it is next in turn, after ${turn} placements` };
      }
    }
  }
}

/** Whether a placement is for this host, if it names a host at all. */
function isOn(placement: Placement | null, host: string | undefined): boolean {
  return placement?.host === undefined || placement.host === host;
}

function sharedServerId(index: number): string {
  return `shared-${index}`;
}

/** The ids of all shared servers: the configured number of servers, and the servers that were added by hand. */
function sharedServerIds(registry: Registry, configured: number): string[] {
  const ids = new Set(Array.from({ length: configured }, (_, index) => sharedServerId(index + 1)));
  for (const server of Object.values(registry.servers)) if (server.isolation === "shared") ids.add(server.id);
  return [...ids];
}

export function nextSharedServer(registry: Registry): string {
  for (let index = 1; ; index++) {
    const server = registry.servers[sharedServerId(index)];
    if (server === undefined || (!isRunning(server) && server.claim === null)) return sharedServerId(index);
  }
}

/**
 * The id of the first server with the fewest sessions in memory. A server that does not run has no sessions in memory.
 */
function leastLoadedServer(registry: Registry, ids: readonly string[]): string {
  const loads = ids.map((id) => {
    const server = registry.servers[id];
    return { id, load: server !== undefined && isRunning(server) ? loadedSessions(server).length : 0 };
  });
  return loads.reduce((best, next) => (next.load < best.load ? next : best)).id;
}

/**
 * The name with the highest score for this user (rendezvous hashing, Thaler and Ravishankar 1998). When one of n names
 * is added or removed, only about one user in n gets another name.
 */
export function rendezvousChoice(user: string, names: readonly string[]): string {
  const scores = names.map((name) => ({ name, score: sha256(`${user}\0${name}`) }));
  return scores.reduce((best, next) => (next.score > best.score ? next : best), { name: "", score: "" }).name;
}
