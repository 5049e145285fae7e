import { privateMemoryBytes } from "../runtime/process-table.js";
import { knownLoaded } from "../sessions/loaded.js";
import type { Registry, ServerRecord, ServerState } from "../store/store.js";
import type { ServeContext } from "./context.js";
import { diskOf } from "./housekeeping.js";
import { noteTrouble } from "./trouble.js";

/** Counts how the fleet stands, for the metrics. */
export class Surveyor {
  readonly #context: ServeContext;
  #diskIsLow = false;
  #diskProblem: string | null = null;

  constructor(context: ServeContext) {
    this.#context = context;
  }

  /** Why nothing can be written to the disk that holds the state, as of the last look; null when it can be. */
  get diskProblem(): string | null {
    return this.#diskProblem;
  }

  async look(registry: Registry, running: readonly ServerRecord[], draining: boolean): Promise<void> {
    const { store, metrics } = this.#context;
    const serversByState: Record<ServerState, number> = {
      starting: 0,
      ready: 0,
      unhealthy: 0,
      draining: 0,
      stopped: 0,
      failed: 0,
    };
    for (const { state } of Object.values(registry.servers)) serversByState[state] += 1;
    const loaded = running.flatMap((server) => knownLoaded(server).map((sessionId) => ({ server, sessionId })));
    const leases = await Promise.all(loaded.map(async ({ sessionId }) => await store.readLease(sessionId)));
    const memory = running.map(({ process }) => privateMemoryBytes(process?.pid ?? 0) ?? 0);
    metrics.observe({
      serversByState,
      activeSessions: loaded.length,
      turnsInFlight: 0,
      turnsStalled: 0,
      leases: leases.filter((lease) => lease !== null).length,
      memoryBytes: memory.reduce((sum, bytes) => sum + bytes, 0),
      diskFreeBytes: await this.#disk(),
      draining,
    });
  }

  async #disk(): Promise<number | null> {
    const { stateRoot, log } = this.#context;
    try {
      const { freeBytes, low, problem } = await diskOf(stateRoot);
      if (problem !== null && this.#diskProblem === null) log("error", problem, { freeBytes, stateRoot });
      this.#diskProblem = problem;
      if (low && !this.#diskIsLow)
        log("warn", "the disk that holds the state is almost full", { freeBytes, stateRoot });
      this.#diskIsLow = low;
      return freeBytes;
    } catch (error) {
      noteTrouble(this.#context, "the disk that holds the state could not be looked at", error);
      return null;
    }
  }
}
