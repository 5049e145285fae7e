import { createHash } from "node:crypto";
import type { Registry } from "../model/registry.js";
import { isRunning } from "./server.js";
import { loadedSessions } from "./stop/drain.js";

export function sharedServerId(index: number): string {
  return `shared-${index}`;
}

/** The ids of all shared servers: the configured number, and those that were added by hand. */
export function sharedServerIds(registry: Registry, configured: number): string[] {
  const ids = new Set(Array.from({ length: configured }, (_, index) => sharedServerId(index + 1)));
  for (const server of Object.values(registry.servers)) if (server.isolation === "shared") ids.add(server.id);
  return [...ids];
}

/** The id of the lowest-numbered shared server that neither runs nor has a claim. */
export function nextSharedServer(registry: Registry): string {
  for (let index = 1; ; index++) {
    const server = registry.servers[sharedServerId(index)];
    if (server === undefined || (!isRunning(server) && server.claim === null)) return sharedServerId(index);
  }
}

/** The id of the first server with the fewest sessions in memory. A server that does not run has none. */
export function leastLoadedServer(registry: Registry, ids: readonly string[]): string {
  let best = "";
  let fewest = Number.POSITIVE_INFINITY;
  for (const id of ids) {
    const server = registry.servers[id];
    const load = server !== undefined && isRunning(server) ? loadedSessions(server).length : 0;
    if (load < fewest) {
      best = id;
      fewest = load;
    }
  }
  return best;
}

/**
 * The name with the highest score for this user (rendezvous hashing, Thaler and Ravishankar 1998). The same names always
 * give the same result. When a name is added or removed, only its own users move: 1 in n.
 */
export function rendezvousChoice(user: string, names: readonly string[]): string {
  let best = "";
  let highest = "";
  for (const name of names) {
    const score = createHash("sha256").update(`${user}\0${name}`).digest("hex");
    if (best === "" || score > highest) {
      best = name;
      highest = score;
    }
  }
  return best;
}
