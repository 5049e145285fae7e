import type { TurnOutcome } from "../../base/session.js";
import { openHistory, type SessionEvents } from "../../runtime/history/session-events.js";
import type { EndedTurn, OpenTurn, TurnTracker } from "../../runtime/history/turn-tracker.js";

export interface LoadedSession {
  serverId: string;
  sessionId: string;
  home: string;
  /**
   * Whether the server has the session in its memory. If not, every turn that began before this call of `look` has
   * ended.
   */
  isLoaded: boolean;
  /**
   * When the server's process was launched (Unix time in milliseconds). Turns that began earlier ended with an earlier
   * process.
   */
  launchedAtMs: number;
}

type SessionName = Pick<LoadedSession, "serverId" | "sessionId">;

export interface WatchedTurn extends SessionName {
  outcome: TurnOutcome;
  /** From the prompt to the end of the last step, in milliseconds. For a cut turn, at most until we noticed the cut. */
  durationMs: number;
}

export interface Look {
  ended: WatchedTurn[];
  inFlight: (SessionName & OpenTurn)[];
  /** Sessions whose history we could not read, so that we know nothing about their turns. */
  unreadable: (SessionName & { error: unknown })[];
  /** Whether there was more to read than one look may read. The next looks read the rest. */
  isBehind: boolean;
}

/**
 * How many bytes one look reads at most, in total and per session. Parsing a megabyte of short events takes about 20
 * ms.
 */
const LOOK_BYTES = 2 * 1024 * 1024;
const SESSION_BYTES = 1024 * 1024;

interface Watched {
  session: LoadedSession;
  events: SessionEvents;
  tracker: TurnTracker;
}

/**
 * Watches the turns of sessions, no matter who sends the prompts, by reading the histories that the runtime writes.
 * {@link TurnTracker} has the rules. When this class sees a session for the first time, the session's turns count only
 * if they ended after the previous look.
 */
export class TurnWatch {
  readonly #watched = new Map<string, Watched>();
  /**
   * For each session that we no longer watch and whose last turn was cut: when that turn began. The runtime sometimes
   * fails to write the event `session.shutdown`. Without this event, the turn looks open when the session is loaded
   * again.
   */
  readonly #cut = new Map<string, number>();
  readonly #lookBytes: number;
  /** Sessions that the last look did not read to the end. Sessions that it did not read at all come first. */
  #behind: string[] = [];
  /** The time of the last look. Infinite before the first look, so that turns that are already over do not count. */
  #lookedAtMs = Number.POSITIVE_INFINITY;

  constructor(options: { lookBytes?: number } = {}) {
    this.#lookBytes = options.lookBytes ?? LOOK_BYTES;
  }

  /**
   * Reads what was added to the histories of the sessions, and reports their turns.
   *
   * @param sessions the sessions that are loaded now, or were loaded since the last look. If a watched session is
   * missing here, its history is read one last time, and a turn that is still in flight counts as cut.
   * @param nowMs milliseconds since the epoch, by the clock of the machine that the servers run on. Read this clock
   * before you find out which sessions are loaded.
   */
  look(sessions: Iterable<LoadedSession>, nowMs: number): Look {
    const loaded = new Map([...sessions].map((session) => [`${session.serverId}/${session.sessionId}`, session]));
    const order = new Set([...this.#behind, ...loaded.keys(), ...this.#watched.keys()]);
    const look: Look = { ended: [], inFlight: [], unreadable: [], isBehind: false };
    const partly: string[] = [];
    const unread: string[] = [];
    let left = this.#lookBytes;
    for (const key of order) {
      const session = loaded.get(key) ?? this.#watched.get(key)?.session;
      if (session === undefined) continue; // unloaded before we read anything of its history
      if (left > 0) {
        const { bytes, atEnd } = this.#read(key, session, look, nowMs);
        left -= bytes;
        if (!atEnd) partly.push(key);
        else if (!loaded.has(key)) this.#forget(key, look, nowMs);
      } else unread.push(key);
      const { startedAtMs, lastEventAtMs } = this.#watched.get(key)?.tracker.open ?? {};
      if (startedAtMs !== undefined && lastEventAtMs !== undefined)
        look.inFlight.push({ ...namesOf(session), startedAtMs, lastEventAtMs });
    }
    this.#lookedAtMs = nowMs;
    this.#behind = [...unread, ...partly];
    look.isBehind = this.#behind.length > 0;
    return look;
  }

  #read(key: string, session: LoadedSession, look: Look, nowMs: number): { bytes: number; atEnd: boolean } {
    try {
      const watched = this.#watched.get(key);
      return watched === undefined
        ? this.#open(key, session, look, nowMs)
        : this.#follow(Object.assign(watched, { session }), look, nowMs);
    } catch (error) {
      this.#watched.delete(key);
      look.unreadable.push({ ...namesOf(session), error });
      return { bytes: 0, atEnd: true };
    }
  }

  #open(key: string, session: LoadedSession, look: Look, nowMs: number): { bytes: number; atEnd: boolean } {
    const { events, tracker, ended, bytes } = openHistory(session.home, session.sessionId, SESSION_BYTES);
    // Count only turns that ended since the last look. The session may have been loaded only after that look.
    for (const turn of ended) if (turn.endedAtMs >= this.#lookedAtMs) noteEnd(look, session, turn);
    const { startedAtMs, lastEventAtMs } = tracker.open ?? {};
    const isCounted = startedAtMs !== undefined && startedAtMs === this.#cut.get(key);
    this.#cut.delete(key);
    const cut = isCounted ? tracker.close(nowMs) : closeIfCut(tracker, session, nowMs);
    // Do not count an older turn. We counted it when it was cut, or it was cut while no supervisor ran.
    if (!isCounted && lastEventAtMs !== undefined && lastEventAtMs >= this.#lookedAtMs) noteEnd(look, session, cut);
    this.#watched.set(key, { session, events, tracker });
    return { bytes, atEnd: true };
  }

  #follow(watched: Watched, look: Look, nowMs: number): { bytes: number; atEnd: boolean } {
    const { session, tracker } = watched;
    const { events, bytes, atEnd, fate } = watched.events.read(SESSION_BYTES);
    const note = (turn: EndedTurn | null) => noteEnd(look, session, turn);
    if (fate === "replaced") return this.#startOver(watched, look, nowMs);
    for (const event of events) note(tracker.push(event));
    if (fate === "gone") note(tracker.close(nowMs));
    else if (atEnd) note(tracker.endIfQuiet(nowMs) ?? closeIfCut(tracker, session, nowMs));
    return { bytes, atEnd };
  }

  /** Reads a history that has replaced the earlier one. The new history may show how the turn in flight ended. */
  #startOver(watched: Watched, look: Look, nowMs: number): { bytes: number; atEnd: boolean } {
    const { session, tracker } = watched;
    const before = tracker.open;
    const opened = openHistory(session.home, session.sessionId, SESSION_BYTES);
    watched.events = opened.events;
    watched.tracker = opened.tracker;
    if (before !== null && opened.tracker.open?.startedAtMs !== before.startedAtMs) {
      const end = opened.ended.find(({ startedAtMs }) => startedAtMs === before.startedAtMs) ?? tracker.close(nowMs);
      noteEnd(look, session, end);
    }
    const cut = closeIfCut(opened.tracker, session, nowMs);
    if (cut?.startedAtMs === before?.startedAtMs) noteEnd(look, session, cut);
    return { bytes: opened.bytes, atEnd: true };
  }

  #forget(key: string, look: Look, nowMs: number): void {
    const watched = this.#watched.get(key);
    if (watched === undefined) return;
    this.#watched.delete(key);
    noteEnd(look, watched.session, watched.tracker.close(nowMs));
    const { lastCut } = watched.tracker;
    if (lastCut !== null) this.#cut.set(key, lastCut.startedAtMs);
  }
}

/**
 * Ends the turn in flight if its server process has ended or has unloaded the session. The history may not show this.
 */
function closeIfCut(tracker: TurnTracker, { isLoaded, launchedAtMs }: LoadedSession, nowMs: number): EndedTurn | null {
  if (tracker.open === null) return null;
  const { startedAtMs } = tracker.open;
  if (startedAtMs < launchedAtMs) return tracker.close(Math.min(launchedAtMs, nowMs));
  // The server may have loaded the session and begun this turn after we checked whether the session is loaded.
  return isLoaded || startedAtMs >= nowMs ? null : tracker.close(nowMs);
}

function noteEnd(look: Look, session: LoadedSession, turn: EndedTurn | null): void {
  if (turn === null) return;
  look.ended.push({ ...namesOf(session), outcome: turn.outcome, durationMs: turn.endedAtMs - turn.startedAtMs });
}

function namesOf({ serverId, sessionId }: LoadedSession): SessionName {
  return { serverId, sessionId };
}
