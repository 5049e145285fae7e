import { setTimeout as delay } from "node:timers/promises";
import { isFleetError } from "../errors.js";
import { RawConnection, RpcError } from "../runtime/client/raw-connection.js";
import { provenEndpoint } from "../runtime/probe.js";
import { listSessionFolders, readSessionFolder } from "../runtime/session-state.js";
import type { ServerRecord } from "../store/store.js";

const POLL_MS = 50;

export interface DrainOptions {
  /** How long turns in flight may take to end, in milliseconds. */
  timeoutMs: number;
  /** How long the server may take over one answer before it counts as hung, in milliseconds. */
  answerMs: number;
  signal: AbortSignal;
}

/**
 * Waits until no session of the server is in a turn, whoever started it: the runtime drops turns in flight on SIGTERM.
 * Resolves with the sessions that still were in a turn when the time was up. A server that does not answer cannot be
 * asked: every session it had loaded counts then.
 *
 * @throws the signal's reason when it aborts before the turns have ended.
 */
export async function awaitTurns(server: ServerRecord, options: DrainOptions): Promise<string[]> {
  const deadline = performance.now() + options.timeoutMs;
  for (;;) {
    const busy = await sessionsInTurn(server, options.answerMs);
    if (busy.sessions.length === 0 || !busy.answered) return busy.sessions;
    if (performance.now() >= deadline) return busy.sessions;
    options.signal.throwIfAborted();
    await delay(Math.min(POLL_MS, Math.max(0, deadline - performance.now())));
  }
}

interface Busy {
  sessions: string[];
  answered: boolean;
}

async function sessionsInTurn(server: ServerRecord, answerMs: number): Promise<Busy> {
  const loaded = loadedSessions(server);
  if (loaded.length === 0) return { sessions: [], answered: true };
  try {
    await using connection = await RawConnection.open(provenEndpoint(server), AbortSignal.timeout(answerMs));
    const active = await Promise.all(loaded.map(async (id) => ((await isInTurn(connection, id)) ? [id] : [])));
    return { sessions: active.flat(), answered: true };
  } catch (error) {
    if (!isFleetError(error)) throw error;
    return { sessions: loaded, answered: false }; // hung, or gone meanwhile
  }
}

async function isInTurn(connection: RawConnection, sessionId: string): Promise<boolean> {
  try {
    const activity = await connection.request("session.metadata.activity", { sessionId });
    return (activity as { hasActiveWork?: unknown }).hasActiveWork === true;
  } catch (error) {
    // Unloaded between the look at the disk and the question: in no turn any more.
    if (error instanceof RpcError) return false;
    throw error;
  }
}

/** Sessions that this very process has in memory, by the locks it left in their folders. */
export function loadedSessions(server: ServerRecord): string[] {
  const pid = server.process?.pid;
  if (pid === undefined) return [];
  return listSessionFolders(server.home).filter(
    (id) => readSessionFolder(server.home, id)?.loadedBy.includes(pid) === true,
  );
}
