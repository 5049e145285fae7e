import type { ServerRecord } from "../../model/server.js";
import { isClaimed } from "../../pool/claims/held-claim.js";
import { usedSessions } from "../../pool/use-markers.js";
import { knownLoaded } from "../../sessions/memory/open-notes.js";
import { system } from "../../system/system.js";
import type { ServeContext } from "../context.js";
import type { Operations } from "../operations.js";

/**
 * Stops users' own servers that have had no session in memory and no use for `pool.idleTimeout`, and have no client at the
 * end of that time. When a user comes back, the fleet starts the server again.
 */
export class IdleStopper {
  readonly #context: ServeContext;
  readonly #operations: Operations;
  readonly #stopping: AbortSignal;
  /** By launch id: the time (`clock.now()`) at which the launch was last seen in use. */
  readonly #used = new Map<string, number>();

  constructor(context: ServeContext, operations: Operations, stopping: AbortSignal) {
    this.#context = context;
    this.#operations = operations;
    this.#stopping = stopping;
  }

  /** @param ownPorts the local ports of the supervisor's own connections, which are not clients */
  look(servers: readonly ServerRecord[], ownPorts: ReadonlySet<number>): void {
    const { idleTimeoutMs } = this.#context.config.pool;
    if (idleTimeoutMs === null) return;
    const own = servers.filter(({ user }) => user !== null);
    const launches = new Set(own.map(({ launchId }) => launchId ?? ""));
    for (const launch of this.#used.keys()) if (!launches.has(launch)) this.#used.delete(launch);
    const now = this.#context.clock.now();
    const due = own.filter((server) => {
      const launch = server.launchId ?? "";
      const hasSessions = knownLoaded(server).length > 0 || usedSessions(server).size > 0;
      if (!this.#used.has(launch) || isClaimed(server) || hasSessions) this.#used.set(launch, now);
      return now - (this.#used.get(launch) ?? now) > idleTimeoutMs;
    });
    if (due.length === 0) return;
    // Look at connections only if a server is due, because reading the kernel's table of sockets takes milliseconds.
    const connections = system().processes.connectedPorts(new Set(due.map(({ port }) => port ?? 0)), ownPorts);
    for (const server of due) {
      if (connections.has(server.port ?? 0)) this.#used.set(server.launchId ?? "", now);
      else
        this.#operations.begin("it could not be stopped while idle", server.id, async () => await this.#stop(server));
    }
  }

  async #stop({ id }: ServerRecord): Promise<void> {
    const { pool, config, log } = this.#context;
    const drainTimeoutMs = config.drain.timeoutMs;
    const { outcome } = await pool.stop(id, { drainTimeoutMs, force: false, signal: this.#stopping });
    log("info", `server ${id} was idle and was stopped`, { server: id, outcome });
  }
}
