import { availableParallelism } from "node:os";
import { FleetError } from "../base/errors.js";
import { type SandboxReport, separates } from "../base/sandbox.js";
import type { Registry, ServerRecord, SupervisorRecord } from "../base/server.js";
import type { Config } from "../config/schema.js";
import { isAlive } from "../runtime/process/process-table.js";
import type { Store } from "../store/store.js";

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
   * When `drain` closed the pool (ISO 8601, UTC); `drain --undo` opens it again. Null if the pool is open, or if
   * `serve` closed it.
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

/**
 * How many servers may start at once. If more start at once, each start takes longer, because a start mostly needs the
 * processor.
 */
export const STARTS_AT_ONCE = Math.max(4, availableParallelism() * 4);

/**
 * Runs `work` on every item, at most `limit` at once. Throws the first failure, but only after all calls have ended.
 */
export async function mapConcurrently<Item, Result>(
  items: readonly Item[],
  limit: number,
  work: (item: Item) => Promise<Result>,
): Promise<Result[]> {
  const results: Result[] = new Array(items.length);
  const failures: unknown[] = [];
  const queue = items.entries();
  const worker = async () => {
    for (const [index, item] of queue) {
      try {
        results[index] = await work(item);
      } catch (error) {
        failures.push(error);
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(limit, items.length) }, worker));
  if (failures.length > 0) throw failures[0];
  return results;
}

/** The facts that decide which requests about files, programs and approvals a server may get from a client. */
export interface Reach {
  config: Config;
  /** Whether the server is the user's own, with no other user's sessions on it. */
  own: boolean;
  /** The server's sandbox; undefined if it has none. */
  sandbox: SandboxReport | undefined;
}

/**
 * Whether the client may use files and programs on the server's machine. The setting "auto" allows that if the server's
 * sandbox keeps everything else out of reach. A Redis without a password counts as in reach, because a sandbox may
 * leave the network open.
 */
export function reachesHost({ own, config, sandbox }: Reach): boolean {
  const { host } = config.session;
  if (!own || host !== "auto") return own && host === "owner";
  return sandbox !== undefined && separates(sandbox) && !hasOpenStore(config);
}

/** Whether the fleet uses a Redis without a password. */
export function hasOpenStore({ store, storeOptions }: Pick<Config, "store" | "storeOptions">): boolean {
  return store.kind === "redis" && storeOptions.password === null;
}

export const OPEN_STORE =
  "Redis asks for no password, so every agent that reaches it can delete the state of the fleet";
