import type { Registry } from "../../model/registry.js";
import { NO_SANDBOX } from "../../model/sandbox.js";
import { SERVER_STATES, type ServerRecord, type ServerState } from "../../model/server.js";
import { knownLoaded, lately } from "../../sessions/memory/open-notes.js";
import { purgesUnderWay } from "../../store/purging.js";
import type { ServeContext } from "../context.js";
import { logFailure } from "../failures.js";
import { Disks } from "./disks.js";
import type { ServerProcesses } from "./server-processes.js";
import { TurnWatch } from "./turn-watch.js";

const NO_STREAMS = { open: 0, events: 0, slow: 0 };

/** Makes the measurements that the metrics show as current values, once per health interval. */
export class Measurements {
  readonly #context: ServeContext;
  readonly #processes: ServerProcesses;
  readonly #turns = new TurnWatch();
  /** Sessions whose stalled turn we have already reported. */
  #stalled = new Set<string>();
  readonly #disks: Disks;

  constructor(context: ServeContext, processes: ServerProcesses) {
    this.#context = context;
    this.#processes = processes;
    this.#disks = new Disks(context);
  }

  /** See {@link Disks.problem}. */
  get diskProblem(): string | null {
    return this.#disks.problem;
  }

  async look(registry: Registry, running: readonly ServerRecord[]): Promise<void> {
    const { store, metrics, state, provider, ledger, host, events } = this.#context;
    const serversByState = Object.fromEntries(SERVER_STATES.map((each) => [each, 0])) as Record<ServerState, number>;
    for (const { state } of Object.values(registry.servers)) serversByState[state] += 1;
    const loaded = running.flatMap(knownLoaded);
    const { inFlight, stalled } = this.#lookAtTurns(running);
    const leases = await Promise.all(loaded.map(async (id) => await store.leases.read(id)));
    const purges = await purgesUnderWay(store);
    const begun = purges.map(({ begunAt }) => Date.parse(begunAt) / 1000);
    const memory = running.map((server) => this.#processes.memoryOf(server));
    await this.#disks.checkLogs(running);
    const memoryBytes = memory.reduce((sum, bytes) => sum + bytes, 0);
    metrics.observe({
      serversByState,
      unrestricted: running.filter(({ sandbox = NO_SANDBOX }) => sandbox.mode === "none").length,
      activeSessions: loaded.length,
      turnsInFlight: inFlight,
      turnsStalled: stalled,
      leases: leases.filter((lease) => lease !== null).length,
      purges: purges.length,
      oldestPurge: purges.length === 0 ? 0 : Math.min(...begun),
      memoryBytes,
      diskFreeBytes: await this.#disks.checkState(),
      doorClients: state.door?.clients ?? 0,
      doorTurns: state.door?.turns ?? 0,
      streams: state.http?.streams ?? NO_STREAMS,
      modelRequests: provider.requests,
      usage: ledger.counted,
      events: events.counts,
    });
    const gauges = { turnsInFlight: inFlight, servers: running.length, activeSessions: loaded.length, memoryBytes };
    host.ring.take(gauges, Date.now());
  }

  #lookAtTurns(running: readonly ServerRecord[]): { inFlight: number; stalled: number } {
    const { config, metrics, host, log } = this.#context;
    const nowMs = Date.now();
    const sessions = running.flatMap((server) =>
      lately(server).map((session) => ({
        ...session,
        serverId: server.id,
        home: server.home,
        launchedAtMs: Date.parse(server.startedAt ?? "") || 0,
      })),
    );
    const look = this.#turns.look(sessions, nowMs);
    for (const { outcome, durationMs, serverId, sessionId } of look.ended) {
      metrics.turnEnded(outcome, durationMs / 1000);
      host.ring.turnEnded(outcome, durationMs, nowMs);
      // The metrics contain no names, so log the server and the session.
      const fields = { server: serverId, session: sessionId };
      if (outcome === "cut") log("warn", `the turn in session ${sessionId} was cut`, fields);
      if (outcome === "failed") log("info", `the turn in session ${sessionId} failed`, fields);
    }
    for (const { serverId, sessionId, error } of look.unreadable)
      logFailure(this.#context, "a session's history could not be read", error, {
        server: serverId,
        session: sessionId,
      });
    const stalled = look.inFlight.filter(({ lastEventAtMs }) => nowMs - lastEventAtMs > config.health.stalledTurnMs);
    const known = this.#stalled;
    this.#stalled = new Set(stalled.map(({ sessionId }) => sessionId));
    for (const { serverId, sessionId, startedAtMs, lastEventAtMs } of stalled) {
      if (known.has(sessionId)) continue;
      log("warn", `the turn in session ${sessionId} makes no progress`, {
        server: serverId,
        session: sessionId,
        forMs: nowMs - startedAtMs,
        silentMs: nowMs - lastEventAtMs,
      });
    }
    return { inFlight: look.inFlight.length, stalled: stalled.length };
  }
}
