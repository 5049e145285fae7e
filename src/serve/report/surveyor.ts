import type { Registry } from "../../model/registry.js";
import type { ServerRecord, ServerState } from "../../model/server.js";
import { knownLoaded, lately } from "../../sessions/memory/loaded.js";
import type { ServeContext } from "../context.js";
import { LogDisks } from "../logs/log-disks.js";
import { noteTrouble } from "../trouble.js";
import { diskOf } from "../upkeep/housekeeping.js";
import type { ProcessCensus } from "./process-census.js";
import { TurnWatch } from "./turn-watch.js";

/** Measures the state of the fleet for the metrics. */
export class Surveyor {
  readonly #context: ServeContext;
  readonly #census: ProcessCensus;
  readonly #turns = new TurnWatch();
  /** Sessions whose stalled turn we have already reported. */
  #stalled = new Set<string>();
  readonly #logDisks: LogDisks;
  #diskIsLow = false;
  #diskProblem: string | null = null;

  constructor(context: ServeContext, census: ProcessCensus) {
    this.#context = context;
    this.#census = census;
    this.#logDisks = new LogDisks(context);
  }

  /** Why nothing can be written to the disk that holds the state, as of the last look. Null when it can. */
  get diskProblem(): string | null {
    return this.#diskProblem;
  }

  async look(
    registry: Registry,
    running: readonly ServerRecord[],
    state: { draining: boolean; clients: number; turns: number },
  ): Promise<void> {
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
    const loaded = running.flatMap(knownLoaded);
    const { inFlight, stalled } = this.#lookAtTurns(running);
    const leases = await Promise.all(loaded.map(async (id) => await store.leases.read(id)));
    const memory = running.map((server) => this.#census.memoryOf(server));
    await this.#logDisks.look(running);
    metrics.observe({
      serversByState,
      activeSessions: loaded.length,
      turnsInFlight: inFlight,
      turnsStalled: stalled,
      leases: leases.filter((lease) => lease !== null).length,
      memoryBytes: memory.reduce((sum, bytes) => sum + bytes, 0),
      diskFreeBytes: await this.#disk(),
      draining: state.draining,
      doorClients: state.clients,
      doorTurns: state.turns,
    });
  }

  #lookAtTurns(running: readonly ServerRecord[]): { inFlight: number; stalled: number } {
    const { config, metrics, log } = this.#context;
    const nowMs = Date.now();
    const sessions = running.flatMap((server) =>
      lately(server).map((sessionId) => ({ serverId: server.id, sessionId, home: server.home })),
    );
    const look = this.#turns.look(sessions, nowMs);
    for (const { outcome, durationMs } of look.ended) metrics.turnEnded(outcome, durationMs / 1000);
    for (const { serverId, sessionId, error } of look.unreadable)
      noteTrouble(this.#context, "a session's history could not be read", error, {
        server: serverId,
        session: sessionId,
      });
    const stalled = look.inFlight.filter(({ lastEventAtMs }) => nowMs - lastEventAtMs > config.health.stalledTurnMs);
    const known = this.#stalled;
    this.#stalled = new Set(stalled.map(({ sessionId }) => sessionId));
    for (const { serverId, sessionId, startedAtMs, lastEventAtMs } of stalled) {
      if (known.has(sessionId)) continue;
      const times = { forMs: nowMs - startedAtMs, silentMs: nowMs - lastEventAtMs };
      log("warn", `the turn in session ${sessionId} makes no progress`, {
        server: serverId,
        session: sessionId,
        ...times,
      });
    }
    return { inFlight: look.inFlight.length, stalled: stalled.length };
  }

  async #disk(): Promise<number | null> {
    const { stateRoot, log } = this.#context;
    try {
      const { freeBytes, low, problem } = await diskOf(stateRoot);
      const known = this.#diskProblem;
      this.#diskProblem = problem === null ? null : `the disk that holds the state ${problem}`;
      if (this.#diskProblem !== null && known === null) log("error", this.#diskProblem, { freeBytes, stateRoot });
      if (low && !this.#diskIsLow)
        log("warn", "the disk that holds the state is almost full", { freeBytes, stateRoot });
      this.#diskIsLow = low;
      return freeBytes;
    } catch (error) {
      noteTrouble(this.#context, "the disk that holds the state could not be checked", error);
      return null;
    }
  }
}
