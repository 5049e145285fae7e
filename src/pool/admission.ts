import { FleetError } from "../errors.js";
import type { Registry, SupervisorRecord } from "../model/registry.js";
import type { ServerRecord } from "../model/server.js";
import { isAlive } from "../runtime/process/process-table.js";
import type { Store } from "../store/ports.js";

export function liveSupervisor({ supervisors = [] }: Registry): SupervisorRecord | undefined {
  return supervisors.find(({ process }) => isAlive(process));
}

const DRAIN = '"copilotfleet drain"';

/** The command that closed the pool, for messages. Null while the pool is open. */
export function closedBy(registry: Registry): string | null {
  if (registry.drainedAt !== undefined) return `${DRAIN} at ${registry.drainedAt}`;
  // Every turn calls this function, so check a supervisor's process only if that supervisor is draining.
  const draining = registry.supervisors?.find(({ state, process }) => state === "draining" && isAlive(process));
  return draining === undefined
    ? null
    : `"copilotfleet serve" (process ${draining.process.pid}), which is about to end`;
}

/** Whether the pool of a host accepts new servers and turns. */
export interface PoolState {
  state: "open" | "closed";
  /** Why the pool is closed. Null while it is open. */
  reason: string | null;
  /**
   * When `drain` closed the pool (ISO 8601, UTC); `drain --undo` opens it again. Null if the pool is open, or if `serve`
   * closed it.
   */
  drainedAt: string | null;
}

export function poolState(registry: Registry): PoolState {
  const by = closedBy(registry);
  if (by === null) return { state: "open", reason: null, drainedAt: null };
  return { state: "closed", reason: `closed by ${by}`, drainedAt: registry.drainedAt ?? null };
}

/**
 * Whether sessions may be used on this launch of the server. Checks the process, too, because after a kill the record
 * still names the killed process for a moment.
 */
export function admits(registry: Registry, { id, launchId }: ServerRecord): boolean {
  const server = registry.servers[id];
  if (server === undefined || server.launchId !== launchId || server.state === "draining") return false;
  return server.process !== null && isAlive(server.process);
}

/**
 * The ids of all recorded launches. A process of this fleet with any other launch id is left over from an earlier
 * launch.
 */
export function launchesOf({ servers }: Registry): Set<string> {
  return new Set(
    Object.values(servers).flatMap(({ launchId, replacement }) =>
      [launchId, replacement?.launchId].filter((id) => id != null),
    ),
  );
}

/** @param by as {@link closedBy} returns it */
export function poolDraining(by: string): FleetError {
  const isDrained = by.startsWith(DRAIN);
  return new FleetError("FLEET_POOL_DRAINING", `The pool takes no new servers or turns. It was closed by ${by}.`, {
    suggestions: [isDrained ? "copilotfleet drain --undo # opens the pool" : "Wait until serve runs again."],
  });
}

/** Closes the pool. From then on, nobody can start a server or begin a turn. */
export async function closePool(store: Store): Promise<void> {
  await store.registry.update((registry) => {
    registry.drainedAt ??= new Date().toISOString();
  });
}

export async function openPool(store: Store): Promise<void> {
  await store.registry.update((registry) => {
    delete registry.drainedAt;
  });
}
