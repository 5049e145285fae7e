import type { ServerRecord } from "../../model/server.js";
import { isClaimed } from "../../pool/claims/held-claim.js";
import { sessionsInTurn } from "../../pool/stop/drain.js";
import type { ServeContext } from "../context.js";
import type { Operations } from "../operations.js";
import type { RecycleReason } from "../report/metrics.js";
import type { ServerProcesses } from "../report/server-processes.js";

/**
 * How long we wait for a moment without turns, in milliseconds. After that, we drain the server even if it is in a
 * turn.
 */
const PATIENCE_MS = 5 * 60_000;

/** The shortest time between two attempts at one server, in milliseconds. */
const PAUSE_MS = 60_000;

interface Overdue {
  since: number;
  notBefore: number;
}

/**
 * Replaces servers that are too big or too old, because the runtime never gives memory back. It replaces one server at a time, in a moment without turns if such a moment comes soon enough. It never cuts a
 * turn.
 */
export class Recycler {
  readonly #context: ServeContext;
  readonly #operations: Operations;
  readonly #processes: ServerProcesses;
  readonly #stopping: AbortSignal;
  readonly #overdue = new Map<string, Overdue>();
  /** By server id: the time (`clock.now()`) from which a replaced server may be replaced again. */
  readonly #resting = new Map<string, number>();
  #current: string | undefined;

  constructor(context: ServeContext, operations: Operations, processes: ServerProcesses, stopping: AbortSignal) {
    this.#context = context;
    this.#operations = operations;
    this.#processes = processes;
    this.#stopping = stopping;
  }

  look(servers: readonly ServerRecord[]): void {
    const launches = new Set(servers.map(({ launchId }) => launchId ?? ""));
    for (const launch of this.#overdue.keys()) if (!launches.has(launch)) this.#overdue.delete(launch);
    const due = servers.flatMap((server) => {
      const reason = this.#reasonFor(server);
      return reason === null || isClaimed(server) ? [] : [{ server, reason, overdue: this.#overdueOf(server) }];
    });
    // Begin with the server that was tried longest ago, because a server that always has turns must not block the
    // others.
    due.sort((a, b) => a.overdue.notBefore - b.overdue.notBefore);
    for (const { server, reason, overdue } of due) this.#consider(server, reason, overdue);
  }

  #overdueOf({ launchId }: ServerRecord): Overdue {
    const now = this.#context.clock.now();
    const overdue = this.#overdue.get(launchId ?? "") ?? { since: now, notBefore: now };
    this.#overdue.set(launchId ?? "", overdue);
    return overdue;
  }

  #reasonFor(server: ServerRecord): RecycleReason | null {
    const { maxMemoryBytes, maxAgeMs } = this.#context.config.recycle;
    if (maxMemoryBytes !== null && this.#processes.memoryOf(server) > maxMemoryBytes) return "memory";
    if (maxAgeMs !== null && Date.now() - Date.parse(server.startedAt ?? "") > maxAgeMs * spread(server)) return "age";
    return null;
  }

  #consider(server: ServerRecord, reason: RecycleReason, overdue: Overdue): void {
    const now = this.#context.clock.now();
    const notBefore = Math.max(overdue.notBefore, this.#resting.get(server.id) ?? 0);
    if (this.#current !== undefined || now < notBefore || this.#operations.isBusy(server.id)) return;
    this.#current = server.id;
    this.#operations.begin("it could not be recycled", server.id, async () => {
      overdue.notBefore = this.#context.clock.now() + PAUSE_MS;
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
      overdue.notBefore = this.#context.clock.now() + config.health.intervalMs;
      return;
    }
    log("info", `recycling server ${id}: ${reason}`, { server: id, reason, serverPid: server.process?.pid });
    const drainTimeoutMs = config.drain.timeoutMs;
    const result = await pool.recycle(id, { drainTimeoutMs, late: "leave", signal: this.#stopping });
    if (result.kind === "replaced") {
      metrics.recycled(reason);
      this.#resting.set(id, this.#context.clock.now() + PAUSE_MS);
      const { process, port } = result.server;
      log("info", `server ${id} was recycled`, { server: id, reason, serverPid: process?.pid, port });
    } else log("info", `server ${id} is recycled later: ${result.kind}`, { server: id, reason });
  }
}

/**
 * A factor between 1 and 1.1, constant for one launch, so that servers of the same age are not all replaced at once.
 */
function spread({ launchId }: ServerRecord): number {
  return 1 + Number.parseInt((launchId ?? "0").slice(0, 4), 16) / 0xffff / 10;
}
