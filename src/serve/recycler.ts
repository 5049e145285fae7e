import { sessionsInTurn } from "../pool/drain.js";
import { isClaimed } from "../pool/mend.js";
import { knownLoaded, notedSessions } from "../sessions/loaded.js";
import type { ServerRecord } from "../store/store.js";
import type { ServeContext } from "./context.js";
import type { RecycleReason } from "./metric-labels.js";
import type { Operations } from "./operations.js";
import type { ProcessCensus } from "./process-census.js";

/** For so long a moment without turns is waited for; after that admission stops for at most the drain's deadline. */
const PATIENCE_MS = 5 * 60_000;

interface Overdue {
  since: number;
  notBefore: number;
}

/**
 * Replaces servers that are too big, too old or have had too many sessions: the runtime never gives memory back. One at a
 * time, at a moment without turns if there is one, and never at the price of a turn.
 */
export class Recycler {
  readonly #context: ServeContext;
  readonly #operations: Operations;
  readonly #census: ProcessCensus;
  readonly #stopping: AbortSignal;
  /** Sessions that each launch was seen with. */
  readonly #seen = new Map<string, Set<string>>();
  readonly #overdue = new Map<string, Overdue>();
  /** Until when a server is left alone that was replaced, by its id; in milliseconds of `performance.now()`. */
  readonly #resting = new Map<string, number>();
  #current: string | undefined;

  constructor(context: ServeContext, operations: Operations, census: ProcessCensus, stopping: AbortSignal) {
    this.#context = context;
    this.#operations = operations;
    this.#census = census;
    this.#stopping = stopping;
  }

  look(servers: readonly ServerRecord[]): void {
    const launches = new Set(servers.map(({ launchId }) => launchId ?? ""));
    for (const map of [this.#seen, this.#overdue])
      for (const launch of map.keys()) if (!launches.has(launch)) map.delete(launch);
    const due = servers.flatMap((server) => {
      const reason = this.#reasonFor(server);
      return reason === null || isClaimed(server) ? [] : [{ server, reason, overdue: this.#overdueOf(server) }];
    });
    // Whoever has waited longest since the last attempt: one that is never without turns must not keep the others waiting.
    due.sort((a, b) => a.overdue.notBefore - b.overdue.notBefore);
    for (const { server, reason, overdue } of due) this.#consider(server, reason, overdue);
  }

  #overdueOf({ launchId }: ServerRecord): Overdue {
    const now = performance.now();
    const overdue = this.#overdue.get(launchId ?? "") ?? { since: now, notBefore: now };
    this.#overdue.set(launchId ?? "", overdue);
    return overdue;
  }

  #reasonFor(server: ServerRecord): RecycleReason | null {
    const { maxMemoryBytes, maxAgeMs, maxSessions } = this.#context.config.recycle;
    if (maxMemoryBytes !== null && this.#census.memoryOf(server) > maxMemoryBytes) return "memory";
    if (maxAgeMs !== null && Date.now() - Date.parse(server.startedAt ?? "") > maxAgeMs * spread(server)) return "age";
    if (maxSessions !== null && this.#sessionsOf(server) > maxSessions) return "sessions";
    return null;
  }

  #sessionsOf(server: ServerRecord): number {
    const launch = server.launchId ?? "";
    const seen = this.#seen.get(launch) ?? new Set<string>();
    this.#seen.set(launch, seen);
    // One that a command opens is unloaded again before anybody looks: its note is there for a while.
    for (const id of [...notedSessions(server), ...knownLoaded(server)]) seen.add(id);
    return seen.size;
  }

  #consider(server: ServerRecord, reason: RecycleReason, overdue: Overdue): void {
    const now = performance.now();
    const notBefore = Math.max(overdue.notBefore, this.#resting.get(server.id) ?? 0);
    if (this.#current !== undefined || now < notBefore || this.#operations.isBusy(server.id)) return;
    this.#current = server.id;
    this.#operations.begin("it could not be recycled", server.id, async () => {
      overdue.notBefore = performance.now() + this.#context.config.recycle.pauseMs;
      try {
        await this.#recycle(server, reason, now - overdue.since > PATIENCE_MS, overdue);
      } finally {
        this.#current = undefined;
      }
    });
  }

  async #recycle(server: ServerRecord, reason: RecycleReason, impatient: boolean, overdue: Overdue): Promise<void> {
    const { pool, config, metrics, log } = this.#context;
    const { id } = server;
    if (!impatient && (await sessionsInTurn(server, config.health.timeoutMs)).length > 0) {
      overdue.notBefore = performance.now() + config.health.intervalMs;
      return;
    }
    log("info", `recycling server ${id}: ${reason}`, { server: id, reason, serverPid: server.process?.pid });
    const drainTimeoutMs = config.drain.timeoutMs;
    const result = await pool.replace(id, { drainTimeoutMs, late: "leave", signal: this.#stopping });
    if (result.kind === "replaced") {
      metrics.recycled(reason);
      this.#resting.set(id, performance.now() + this.#context.config.recycle.pauseMs);
      const { process, port } = result.server;
      log("info", `server ${id} was recycled`, { server: id, reason, serverPid: process?.pid, port });
    } else log("info", `server ${id} is recycled later: ${result.kind}`, { server: id, reason });
  }
}

/** Between 1 and 1.1, the same for one launch at any time: servers of one age do not all go in one hour. */
function spread({ launchId }: ServerRecord): number {
  return 1 + Number.parseInt((launchId ?? "0").slice(0, 4), 16) / 0xffff / 10;
}
