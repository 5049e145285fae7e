import { FleetError } from "../errors.js";
import { isAlive } from "../runtime/process-table.js";
import type { Registry, ServerRecord, Store, SupervisorRecord } from "../store/store.js";

/** The supervisor of this host that is alive, if there is one. */
export function liveSupervisor({ supervisors = [] }: Registry): SupervisorRecord | undefined {
  return supervisors.find(({ process }) => isAlive(process));
}

/** Who closed the pool to everything new, for a message; null while it is open. */
export function closedBy(registry: Registry): string | null {
  if (registry.drainedAt !== undefined) return `"copilotfleet drain" at ${registry.drainedAt}`;
  const supervisor = liveSupervisor(registry);
  return supervisor?.state === "draining"
    ? `"copilotfleet serve" (process ${supervisor.process.pid}), which ends`
    : null;
}

/** Whether the pool of a host takes new servers and turns. */
export interface PoolState {
  state: "open" | "closed";
  /** Why it is closed: who closed it. Null while it is open. */
  reason: string | null;
  /** When `drain` closed it, ISO 8601 in UTC: `drain --undo` opens it again. Null if it is open, or if a `serve` closed it. */
  drainedAt: string | null;
}

export function poolState(registry: Registry): PoolState {
  const by = closedBy(registry);
  if (by === null) return { state: "open", reason: null, drainedAt: null };
  return { state: "closed", reason: `closed by ${by}`, drainedAt: registry.drainedAt ?? null };
}

/**
 * Whether a session may still be used on this launch of the server: it is neither ending nor gone. The process is looked
 * at, too: one that was killed stands in the record, and its connections seem open, for some moments more.
 */
export function admits(registry: Registry, { id, launchId }: ServerRecord): boolean {
  const server = registry.servers[id];
  if (server === undefined || server.launchId !== launchId || server.state === "draining") return false;
  return server.process !== null && isAlive(server.process);
}

/** Every launch that is on record: a process that carries another one is a stray. */
export function launchesOf({ servers }: Registry): Set<string> {
  return new Set(
    Object.values(servers).flatMap(({ launchId, replacement }) =>
      [launchId, replacement?.launchId].filter((id) => id != null),
    ),
  );
}

export function poolDraining(by: string): FleetError {
  return new FleetError("FLEET_POOL_DRAINING", `The pool admits nothing new: it was closed by ${by}.`, {
    suggestions: ["Try again in a moment, when it serves again.", "copilotfleet drain --undo"],
  });
}

/** From here on nobody starts a server or begins a turn. */
export async function closePool(store: Store): Promise<void> {
  await store.updateRegistry((registry) => {
    registry.drainedAt ??= new Date().toISOString();
  });
}

export async function openPool(store: Store): Promise<void> {
  await store.updateRegistry((registry) => {
    delete registry.drainedAt;
  });
}
