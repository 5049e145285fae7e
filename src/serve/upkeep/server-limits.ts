import { writeSize } from "../../config/values/size.js";
import type { LimitsReached } from "../../model/sandbox.js";
import type { ServerRecord } from "../../model/server.js";
import { isClaimed } from "../../pool/claims/held-claim.js";
import { describeBytes } from "../../pool/disk-meter.js";
import { NEVER } from "../../runtime/clock.js";
import { limitsReached } from "../../sandbox/limits/cgroups.js";
import type { ServeContext } from "../context.js";
import type { Operations } from "../operations.js";

/**
 * Reports when servers reach their limits. Stops a server whose files take more than `sandbox.disk` and still grow,
 * because the kernel limits only single files. The fleet refuses new turns on that server until there is room again.
 */
export class ServerLimits {
  readonly #context: ServeContext;
  readonly #operations: Operations;
  /** By launch id: the size of the files of each server that is over its disk limit, in bytes. */
  readonly #over = new Map<string, number>();
  /** By launch id: how many times each limit of the kernel had been reached at the last look. */
  readonly #reached = new Map<string, LimitsReached>();

  constructor(context: ServeContext, operations: Operations) {
    this.#context = context;
    this.#operations = operations;
  }

  look(servers: readonly ServerRecord[]): void {
    const launches = new Set(servers.map(({ launchId }) => launchId));
    for (const map of [this.#over, this.#reached])
      for (const launch of map.keys()) if (!launches.has(launch)) map.delete(launch);
    for (const server of servers) {
      this.#count(server);
      const max = server.sandbox?.limits?.disk ?? null;
      if (max === null || isClaimed(server) || this.#operations.isBusy(server.id)) continue;
      this.#operations.begin("its files could not be measured", server.id, async () => await this.#check(server, max));
    }
    this.#context.metrics.overDisk(this.#over.size);
  }

  /** Counts and logs how often the kernel killed a process, or refused to start one, since the last look. */
  #count(server: ServerRecord): void {
    const { limits } = server.sandbox ?? {};
    if (limits === undefined || limits.cgroups.length === 0) return;
    const { log, metrics } = this.#context;
    const launch = server.launchId ?? "";
    const before = this.#reached.get(launch) ?? { memory: 0, processes: 0 };
    const now = limitsReached(limits, server.process?.pid ?? null);
    this.#reached.set(launch, now);
    for (const limit of ["memory", "processes"] as const) {
      const count = now[limit] - before[limit];
      if (count <= 0) continue;
      metrics.limitReached(limit, count);
      log("warn", `server ${server.id} reached sandbox.${limit}`, { server: server.id, limit, count });
    }
  }

  async #check(server: ServerRecord, max: number): Promise<void> {
    const { pool, log, metrics } = this.#context;
    const { id } = server;
    const launch = server.launchId ?? "";
    const before = this.#over.get(launch);
    const bytes = await pool.disk.bytesOf(server);
    if (bytes <= max) {
      if (this.#over.delete(launch)) log("info", `server ${id} is below sandbox.disk again`, { server: id, bytes });
      return;
    }
    this.#over.set(launch, bytes);
    const sizes = `its files take ${describeBytes(bytes)}, and sandbox.disk allows ${writeSize(max)}`;
    if (before === undefined) {
      metrics.limitReached("disk");
      log("warn", `server ${id} takes no new turns: ${sizes}`, { server: id, bytes, max });
    }
    if (before === undefined || bytes <= before) return;
    const { cut } = await pool.stop(id, { drainTimeoutMs: 0, force: false, signal: NEVER, stays: true });
    log("error", `server ${id} was stopped, because it still wrote: ${sizes}`, { server: id, bytes, max, cut });
  }
}
