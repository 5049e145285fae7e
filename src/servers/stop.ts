import { setTimeout as delay } from "node:timers/promises";
import { abortable, deadline, NEVER } from "../base/clock.js";
import { FleetError, isFleetError } from "../base/errors.js";
import type { EventLog } from "../base/event.js";
import type { OnProgress } from "../base/progress.js";
import type { ServerRecord, ServerState } from "../base/server.js";
import { isInTurn, RawConnection, unlessRefused } from "../runtime/client/raw-connection.js";
import { nextPiece } from "../runtime/history/line.js";
import { endsInsideTurn } from "../runtime/history/session-events.js";
import { listLoaded } from "../runtime/history/session-state.js";
import { provenEndpoint } from "../runtime/process/probe.js";
import { logStop, stopServer } from "../runtime/process/stop.js";
import { changeClaimed, claimStop, giveUpStop, holderOf, recordEnd } from "./claims.js";
import { HeldClaim, untilUnclaimed } from "./server.js";
import type { PoolContext } from "./surroundings.js";
import { usedSessions } from "./use-markers.js";

export interface StopOptions {
  /** How long turns in flight may take to end, in milliseconds. */
  drainTimeoutMs: number;
  /** Whether to stop without waiting for turns and without SIGTERM. */
  force: boolean;
  /** If this signal aborts during the wait for turns, the server keeps running. */
  signal: AbortSignal;
  /** Once this signal aborts, the stop continues as with `force`. */
  hurry?: AbortSignal;
  /** Whether a restart or the next `serve` will start the server again, because it should still run. */
  stays?: boolean;
  onProgress?: OnProgress | undefined;
}

export interface Stopped {
  id: string;
  outcome: "drained" | "killed" | "already-stopped";
  /** Sessions whose turn was cut. */
  cut: string[];
  /** The server's host, in a fleet on several hosts. */
  hostName?: string;
}

export const TERMINATE_GRACE_MS = 5_000;
/**
 * The grace period in milliseconds if turns outlasted the drain. It is short, because the caller has already waited for
 * a long time.
 */
const LATE_GRACE_MS = 2_000;
/**
 * How much longer than the drain timeout a stop waits for another command, such as a start, to give up its claim, in
 * milliseconds.
 */
const OTHERS_MS = 2 * TERMINATE_GRACE_MS;

/** Drains and stops one server and frees its port. Its home stays. */
export async function stopRecorded(
  context: Pick<PoolContext, "store" | "config" | "events">,
  id: string,
  options: StopOptions,
): Promise<Stopped> {
  const { store } = context;
  const { hurry = NEVER, stays = false } = options;
  using held = new HeldClaim();
  const patience = performance.now() + options.drainTimeoutMs + OTHERS_MS;
  for (;;) {
    const decision = await store.registry.update((registry) => claimStop(registry, id, { stays, claim: held.claim }));
    switch (decision.kind) {
      case "absent":
      case "stopped":
        return { id, outcome: "already-stopped", cut: [] };
      case "busy":
        if (options.signal.aborted || performance.now() > patience) throw busy(decision.server);
        await untilUnclaimed(store, id, { untilMs: patience, signal: options.signal });
        continue;
      case "stop": {
        const { server, from } = decision;
        const drained = await drainForGood(context, server, from, {
          timeoutMs: options.force ? 0 : options.drainTimeoutMs,
          signal: options.signal,
          hurry,
          late: "cut",
          stays,
          onProgress: options.onProgress,
        });
        const graceMs = drained.cut.length > 0 ? LATE_GRACE_MS : TERMINATE_GRACE_MS;
        const outcome = await stopServer(server, { graceMs, force: options.force, hurry });
        logStop(server, outcome, { stopping: from === "draining" });
        await changeClaimed(store, server, (record) => recordEnd(record, "stopped", null));
        if (outcome === "already-stopped") return { id, outcome, cut: [] };
        const cut = await allCut(server, drained);
        noteStop(context.events, server, { cut, isForced: options.force });
        return { id, outcome: outcome === "killed" || cut.length > 0 ? "killed" : "drained", cut };
      }
    }
  }
}

/** Adds the stop of a server to the audit log. Unless the stop was forced, also adds the drain. */
function noteStop(
  events: EventLog,
  { id, user }: ServerRecord,
  how: { cut: readonly string[]; isForced: boolean },
): void {
  const { cut, isForced } = how;
  const about = { user, serverId: id, detail: cut.length === 0 ? null : `turns cut: ${cut.length}` };
  if (!isForced) events.note({ ...about, type: "server.drained", outcome: cut.length === 0 ? "ok" : "failed" });
  events.note({ ...about, type: "server.stopped", reason: isForced ? "forced" : null });
}

function busy(server: ServerRecord): FleetError {
  const message = `Server ${server.id} is ${server.state}, because ${holderOf(server)} is working on it.`;
  return new FleetError("FLEET_POOL_DRAINING", message, { suggestions: ["copilotfleet ps"] });
}

const POLL_MS = 50;
/** A server that fails to answer this many times in a row counts as hung. */
const FAILURES = 3;
/**
 * When the time for turns is up, the server has this many milliseconds to report the turns that are about to be cut.
 */
const LAST_ANSWER_MS = 500;

interface DrainOptions {
  timeoutMs: number;
  answerMs: number;
  /** If this signal aborts, the drain is cancelled. */
  signal: AbortSignal;
  /** If this signal aborts, the time for turns is up at once. */
  hurry: AbortSignal;
  /** Called whenever the set of awaited turns changes. */
  onProgress?: OnProgress | undefined;
}

interface LastDrainOptions extends Omit<DrainOptions, "answerMs"> {
  /** How to handle turns that outlast the deadline: `cut` them, or `leave` the server running and record nothing. */
  late: "cut" | "leave";
  /** Whether the server will be started again after the drain, because it should still run. */
  stays: boolean;
}

interface DrainResult {
  /** Sessions that were still in a turn when the time was up. */
  cut: string[];
  /** Sessions that were unloaded. In some of them, a turn may have begun after all: see {@link allCut}. */
  unloaded: string[];
}

/**
 * Waits until no session of the server is in a turn or being loaded, because the runtime drops turns in flight on
 * SIGTERM. Then saves and unloads each session, so that a client that comes too late gets an error instead of a cut
 * turn. If the server does not answer, every session that it has loaded counts as cut.
 *
 * While the record is `draining`, no client of the fleet can begin a turn that the drain does not see (see
 * `use-markers.ts`). A client that connects to the server directly may still begin a turn right after the server has
 * answered that the session is idle.
 */
async function drainServer(server: ServerRecord, options: DrainOptions): Promise<DrainResult> {
  const until = performance.now() + options.timeoutMs;
  const unloaded = new Set<string>();
  const report = turnReporter(server, options.onProgress);
  await using asked = new AskedServer(server);
  for (let failures = 0; ; ) {
    let busy = await asked.sessionsInTurn(options.answerMs, options.hurry);
    // If `hurry` interrupted the question, ask again. Without an answer, every loaded session would count as cut.
    if (busy === null && options.hurry.aborted) {
      busy = await asked.sessionsInTurn(Math.min(options.answerMs, LAST_ANSWER_MS));
    }
    failures = busy === null ? failures + 1 : 0;
    report(busy ?? [], until - performance.now());
    const over = options.hurry.aborted || performance.now() >= until;
    if (busy === null && (failures >= FAILURES || over))
      return { cut: loadedSessions(server), unloaded: [...unloaded] };
    if (busy !== null && busy.length === 0) {
      const late = await asked.unloadIdle(unloaded, options.answerMs, options.hurry);
      // Null: the server did not unload all sessions within `answerMs`. Continue with the rest while there is time.
      if (late === null ? over : late.length === 0) return { cut: [], unloaded: [...unloaded] };
    } else if (busy !== null && over) {
      // A session that has only a use marker is not in the server's memory, so it has no turn to cut.
      const loaded = new Set(loadedSessions(server));
      return { cut: busy.filter((id) => loaded.has(id)), unloaded: [...unloaded] };
    }
    options.signal.throwIfAborted();
    const pauseMs = Math.min(POLL_MS, Math.max(0, until - performance.now()));
    await abortable(delay(pauseMs), options.hurry).catch(() => undefined); // if aborted, the next round is the last
  }
}

/** Returns a function that reports the sessions that are in a turn, if they have changed since its last call. */
function turnReporter({ id: serverId }: ServerRecord, onProgress: OnProgress | undefined) {
  let reported = "";
  return (sessionIds: string[], remainingMs: number): void => {
    const now = sessionIds.join();
    if (now === reported) return;
    reported = now;
    onProgress?.({ done: 0, total: 1, turns: now === "" ? [] : [{ serverId, sessionIds, remainingMs }] });
  };
}

/**
 * Drains a server that this process has claimed, and records that the server is ending. The caller must then stop the
 * server at once. If this process dies first, the next command finds in the record that the server was about to end.
 *
 * If the drain is cancelled, or if turns outlast it and `late` is `leave`, the server returns to the state that it had
 * before the claim (`from`).
 *
 * Writing the record takes milliseconds. If a client that connects to the server directly begins a turn in these
 * milliseconds, restores the record, and drains again if there is time left.
 */
export async function drainForGood(
  { store, config }: Pick<PoolContext, "store" | "config">,
  server: ServerRecord,
  from: ServerState,
  { late, stays, timeoutMs, ...options }: LastDrainOptions,
): Promise<DrainResult> {
  const until = performance.now() + timeoutMs;
  const answerMs = config.health.timeoutMs;
  const change = async (how: (record: ServerRecord) => void) => await changeClaimed(store, server, how);
  const unloaded = new Set<string>();
  try {
    for (;;) {
      const leftMs = Math.max(0, until - performance.now());
      const drained = await drainServer(server, { ...options, answerMs, timeoutMs: leftMs });
      for (const session of drained.unloaded) unloaded.add(session);
      const result = { cut: drained.cut, unloaded: [...unloaded] };
      if (drained.cut.length > 0 && late === "leave") {
        await change((record) => giveUpStop(record, from));
        return result;
      }
      await change((record) => {
        if (server.process !== null) record.ending = server.process;
        record.process = null;
        if (!stays) record.desired = "stopped";
      });
      if (drained.cut.length > 0 || options.hurry.aborted || performance.now() >= until) return result;
      // Do not check for use markers again. The drain found none, and the fleet refuses every later use.
      await using asked = new AskedServer(server);
      const underWay = (await asked.turnsUnderWay(answerMs)) ?? loadedSessions(server);
      if (underWay.length === 0) return result;
      await change((record) => {
        record.process = server.process;
        delete record.ending;
        if (server.desired === undefined) delete record.desired;
        else record.desired = server.desired;
      });
    }
  } catch (error) {
    await change((record) => giveUpStop(record, from));
    throw error;
  }
}

/** All sessions whose turn was cut when a drained server ended. Call this after the server's process has exited. */
export async function allCut({ home, startedAt }: ServerRecord, { cut, unloaded }: DrainResult): Promise<string[]> {
  const sinceMs = Date.parse(startedAt ?? "");
  const behind: string[] = [];
  for (const id of unloaded) {
    if (endsInsideTurn(home, id, Number.isNaN(sinceMs) ? 0 : sinceMs)) behind.push(id);
    await nextPiece(); // reading a history takes milliseconds
  }
  return [...new Set([...cut, ...behind])];
}

/**
 * The sessions that are in a turn or being loaded. If the server does not answer, returns all sessions in its memory.
 */
export async function sessionsInTurn(server: ServerRecord, answerMs: number): Promise<string[]> {
  await using asked = new AskedServer(server);
  return (await asked.sessionsInTurn(answerMs)) ?? loadedSessions(server);
}

/**
 * Asks a server questions over one connection. Each method resolves with null if the server does not answer in time.
 */
class AskedServer implements AsyncDisposable {
  readonly #server: ServerRecord;
  #connection: RawConnection | null = null;

  constructor(server: ServerRecord) {
    this.#server = server;
  }

  async sessionsInTurn(answerMs: number, hurry?: AbortSignal): Promise<string[] | null> {
    const used = usedSessions(this.#server);
    const active = await this.turnsUnderWay(answerMs, hurry);
    return active === null ? null : [...new Set([...used, ...active])];
  }

  async turnsUnderWay(answerMs: number, hurry?: AbortSignal): Promise<string[] | null> {
    const loaded = loadedSessions(this.#server);
    if (loaded.length === 0) return [];
    return await this.#ask(answerMs, hurry, async (connection, signal) => {
      const active = loaded.map(async (id) => ((await isBusy(connection, id, signal)) ? [id] : []));
      return (await Promise.all(active)).flat();
    });
  }

  /**
   * Saves and unloads idle sessions, and adds their ids to `unloaded`. Resolves with the sessions that are in a turn
   * after all; null if the server does not answer.
   */
  async unloadIdle(unloaded: Set<string>, answerMs: number, hurry: AbortSignal): Promise<string[] | null> {
    const loaded = loadedSessions(this.#server);
    if (loaded.length === 0) return [];
    return await this.#ask(answerMs, hurry, async (connection, signal) => {
      const late: string[] = [];
      for (const sessionId of loaded) {
        // If a client disconnects at the beginning of a turn, the runtime may hang while it unloads the session (seen
        // with 1.0.85). The session is then no longer in memory, but its lock file stays, and the requests below get no
        // answer. So skip such a session.
        if ((await isInTurn(connection, sessionId, signal)) === null) continue;
        await unlessRefused(connection.request("sessions.save", { sessionId }, signal));
        if (await isBusy(connection, sessionId, signal)) late.push(sessionId);
        else {
          unloaded.add(sessionId);
          await unlessRefused(connection.request("sessions.close", { sessionId }, signal));
        }
      }
      return late;
    });
  }

  async #ask<T>(
    answerMs: number,
    hurry: AbortSignal | undefined,
    question: (connection: RawConnection, signal: AbortSignal) => Promise<T>,
  ): Promise<T | null> {
    using limit = deadline(answerMs, hurry);
    try {
      this.#connection ??= await RawConnection.open(provenEndpoint(this.#server), limit.signal, { lasting: true });
      return await question(this.#connection, limit.signal);
    } catch (error) {
      await this[Symbol.asyncDispose]();
      if (isFleetError(error) || limit.signal.aborted) return null; // the server hangs or is gone
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const connection = this.#connection;
    this.#connection = null;
    await connection?.[Symbol.asyncDispose]();
  }
}

async function isBusy(connection: RawConnection, sessionId: string, signal: AbortSignal): Promise<boolean> {
  return (await isInTurn(connection, sessionId, signal)) === true;
}

/**
 * Unloads sessions from a running server's memory at once, because they now belong to another host. Unloads them even
 * if they are in use or have unsaved changes.
 */
export async function unloadAtOnce(server: ServerRecord, ids: readonly string[], answerMs: number): Promise<void> {
  if (ids.length === 0) return;
  await using connection = await RawConnection.open(provenEndpoint(server), AbortSignal.timeout(answerMs));
  for (const sessionId of ids) {
    // The server refuses this request if the session is not in its memory.
    await unlessRefused(connection.request("sessions.close", { sessionId }));
  }
}

/** The sessions that the recorded process has in memory. The process has a lock file in the folder of each session. */
export function loadedSessions(server: ServerRecord): string[] {
  return server.process === null ? [] : listLoaded(server.home, server.process);
}
