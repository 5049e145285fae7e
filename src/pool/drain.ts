import { setTimeout as delay } from "node:timers/promises";
import { isFleetError } from "../errors.js";
import { RawConnection, RpcError } from "../runtime/client/raw-connection.js";
import { abortable, deadline } from "../runtime/deadline.js";
import { provenEndpoint } from "../runtime/probe.js";
import { endsInsideTurn } from "../runtime/session-events.js";
import { listLoaded } from "../runtime/session-state.js";
import type { ServerRecord } from "../store/store.js";
import { usedSessions } from "./use-marks.js";

const POLL_MS = 50;
/** How often in a row a server may fail to answer before it counts as hung. */
const FAILURES = 3;
/** What a server may take to tell what is about to be cut, once there is no time left, in milliseconds. */
const LAST_ANSWER_MS = 500;

export interface DrainOptions {
  /** How long turns in flight may take to end, in milliseconds. */
  timeoutMs: number;
  /** How long the server may take over one answer, in milliseconds. */
  answerMs: number;
  /** Aborted: the drain is given up. */
  signal: AbortSignal;
  /** Aborted: the time is up at once. */
  hurry: AbortSignal;
}

export interface DrainResult {
  /** Sessions that still were in a turn when the time was up. */
  cut: string[];
  /** Sessions that were unloaded; {@link allCut} tells which of them a turn had begun in after all. */
  unloaded: string[];
}

/**
 * Waits until no session of the server is in a turn, whoever started it, and none is being opened: the runtime drops
 * turns in flight on SIGTERM. Then saves and unloads each session, so that a client that comes too late is told so
 * instead of being cut. A server that does not answer cannot be asked: every session it had loaded counts as cut then.
 *
 * Those who use the fleet look at the server's record after they marked their use; so with the record in `draining`
 * nobody of them begins a turn behind this one's back. A client that connects directly can, between the question and the
 * unloading next to it.
 *
 * @throws the signal's reason when it aborts before the turns have ended.
 */
export async function drainServer(server: ServerRecord, options: DrainOptions): Promise<DrainResult> {
  const until = performance.now() + options.timeoutMs;
  const unloaded = new Set<string>();
  await using asked = new AskedServer(server);
  for (let failures = 0; ; ) {
    let busy = await asked.sessionsInTurn(options.answerMs, options.hurry);
    // The hurry cut that question short: without an answer everything in memory would be called cut.
    if (busy === null && options.hurry.aborted) {
      busy = await asked.sessionsInTurn(Math.min(options.answerMs, LAST_ANSWER_MS));
    }
    failures = busy === null ? failures + 1 : 0;
    const over = options.hurry.aborted || performance.now() >= until;
    if (busy === null && (failures >= FAILURES || over))
      return { cut: loadedSessions(server), unloaded: [...unloaded] };
    if (busy !== null && busy.length === 0) {
      const late = await asked.unloadIdle(unloaded, options.answerMs, options.hurry);
      // Not all in one go, if they are many: it goes on with what is left, as long as there is time.
      if (late === null ? over : late.length === 0) return { cut: [], unloaded: [...unloaded] };
    } else if (busy !== null && over) {
      // What marks of use speak of is not in the server's memory yet: nothing of it can be cut.
      const loaded = new Set(loadedSessions(server));
      return { cut: busy.filter((id) => loaded.has(id)), unloaded: [...unloaded] };
    }
    options.signal.throwIfAborted();
    const pauseMs = Math.min(POLL_MS, Math.max(0, until - performance.now()));
    await abortable(delay(pauseMs), options.hurry).catch(() => undefined); // the next look is the last one
  }
}

/** All sessions whose turn was cut by the end of a drained server: look when its process is gone. */
export function allCut({ home, startedAt }: ServerRecord, { cut, unloaded }: DrainResult): string[] {
  const sinceMs = Date.parse(startedAt ?? "");
  const behind = unloaded.filter((id) => endsInsideTurn(home, id, Number.isNaN(sinceMs) ? 0 : sinceMs));
  return [...new Set([...cut, ...behind])];
}

/** Sessions of the server that are in a turn now, or are being opened; if it does not answer, all that it has loaded. */
export async function sessionsInTurn(server: ServerRecord, answerMs: number): Promise<string[]> {
  await using asked = new AskedServer(server);
  return (await asked.sessionsInTurn(answerMs)) ?? loadedSessions(server);
}

/**
 * Sessions that the server itself says are in a turn now; if it does not answer, all that it has loaded. Marks of use do
 * not count: once a drain has seen none, those who make them are turned away.
 */
export async function turnsUnderWay(server: ServerRecord, answerMs: number): Promise<string[]> {
  await using asked = new AskedServer(server);
  return (await asked.turnsUnderWay(answerMs)) ?? loadedSessions(server);
}

/** A server that is asked again and again, over one connection for as long as that holds. */
class AskedServer implements AsyncDisposable {
  readonly #server: ServerRecord;
  #connection: RawConnection | null = null;

  constructor(server: ServerRecord) {
    this.#server = server;
  }

  /** Null: it did not answer in time. */
  async sessionsInTurn(answerMs: number, hurry?: AbortSignal): Promise<string[] | null> {
    const used = usedSessions(this.#server);
    const active = await this.turnsUnderWay(answerMs, hurry);
    return active === null ? null : [...new Set([...used, ...active])];
  }

  /** Null: it did not answer in time. */
  async turnsUnderWay(answerMs: number, hurry?: AbortSignal): Promise<string[] | null> {
    const loaded = loadedSessions(this.#server);
    if (loaded.length === 0) return [];
    return await this.#ask(answerMs, hurry, async (connection, signal) => {
      const active = loaded.map(async (id) => ((await isInTurn(connection, id, signal)) ? [id] : []));
      return (await Promise.all(active)).flat();
    });
  }

  /** Saves and unloads what is in no turn. Resolves with what began one meanwhile; null: not all of it in time. */
  async unloadIdle(unloaded: Set<string>, answerMs: number, hurry: AbortSignal): Promise<string[] | null> {
    const loaded = loadedSessions(this.#server);
    if (loaded.length === 0) return [];
    return await this.#ask(answerMs, hurry, async (connection, signal) => {
      const late: string[] = [];
      for (const sessionId of loaded) {
        await tolerant(connection.request("sessions.save", { sessionId }, signal));
        if (await isInTurn(connection, sessionId, signal)) late.push(sessionId);
        else {
          unloaded.add(sessionId);
          await tolerant(connection.request("sessions.close", { sessionId }, signal));
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
      if (isFleetError(error) || limit.signal.aborted) return null; // hung, or gone meanwhile
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const connection = this.#connection;
    this.#connection = null;
    await connection?.[Symbol.asyncDispose]();
  }
}

async function isInTurn(connection: RawConnection, sessionId: string, signal: AbortSignal): Promise<boolean> {
  const activity = await tolerant(connection.request("session.metadata.activity", { sessionId }, signal));
  return (activity as { hasActiveWork?: unknown } | null)?.hasActiveWork === true;
}

/** Null for a session that was unloaded between the look at the disk and the request. */
async function tolerant(request: Promise<unknown>): Promise<unknown> {
  try {
    return await request;
  } catch (error) {
    if (error instanceof RpcError) return null;
    throw error;
  }
}

/** Sessions that this very process has in memory, by the locks it left in their folders. */
export function loadedSessions(server: ServerRecord): string[] {
  const pid = server.process?.pid;
  if (pid === undefined) return [];
  return listLoaded(server.home, pid);
}
