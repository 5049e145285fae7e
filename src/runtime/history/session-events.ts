import { closeSync, fstatSync, lstatSync, readSync, type Stats } from "node:fs";
import { type HistoryEvent, readEvent } from "./event.js";
import { LineSplitter } from "./line.js";
import { historyPath, openHistoryFile } from "./session-state.js";
import type { EndedTurn } from "./turn-state.js";
import { TurnTracker } from "./turn-tracker.js";

const CHUNK_BYTES = 256 * 1024;
/** How much of the end of a history we read. We try the next size until we know whether the session is in a turn. */
const WINDOWS_BYTES = [4 * 1024, 64 * 1024, 1024 * 1024];
const LONGEST_END_BYTES = 4 * 1024 * 1024;
/** Before we read on, we check that this many bytes before the offset have not changed. */
const MARK_BYTES = 32;

export interface Appended {
  events: HistoryEvent[];
  bytes: number;
  atEnd: boolean;
  /** `replaced`: the bytes that we read before are no longer there, because the file is another one or was cut short. */
  fate: "there" | "gone" | "replaced";
}

interface Place {
  ino: number;
  offset: number;
  /** The file's modification time when we last read it to its end; 0 if we did not reach the end. */
  mtimeMs: number;
  mark: Buffer;
}

/** Reads what is appended to one session's history. Reads a half-written line once it is complete. */
export class SessionEvents {
  readonly #home: string;
  readonly #sessionId: string;
  #place: Place | null;
  #splitter: LineSplitter;

  /** @param place null when the file does not exist yet. */
  constructor(home: string, sessionId: string, place: Place | null, splitter: LineSplitter) {
    this.#home = home;
    this.#sessionId = sessionId;
    this.#place = place;
    this.#splitter = splitter;
  }

  /**
   * Reads on. Costs one `lstat` if the file has not changed since it was read to its end.
   *
   * @param maxBytes how much to read at most, rounded up to a multiple of 256 KB.
   */
  read(maxBytes: number): Appended {
    const seen = lstatSync(historyPath(this.#home, this.#sessionId), { throwIfNoEntry: false });
    if (this.#place !== null && seen !== undefined && isUnchanged(this.#place, seen)) return nothing("there");
    const fd = seen === undefined ? null : openHistoryFile(this.#home, this.#sessionId);
    if (fd === null) {
      this.#place = null;
      this.#splitter = new LineSplitter();
      return nothing("gone");
    }
    try {
      const stat = fstatSync(fd);
      this.#place ??= { ino: stat.ino, offset: 0, mtimeMs: 0, mark: Buffer.alloc(0) };
      return isContinued(fd, this.#place, stat) ? this.#append(fd, this.#place, stat, maxBytes) : nothing("replaced");
    } finally {
      closeSync(fd);
    }
  }

  #append(fd: number, place: Place, stat: Stats, maxBytes: number): Appended {
    const from = place.offset;
    const events: HistoryEvent[] = [];
    while (place.offset < stat.size && place.offset - from < maxBytes) {
      const chunk = readAt(fd, place.offset, Math.min(CHUNK_BYTES, stat.size - place.offset));
      if (chunk.length === 0) break; // the file was just cut short: the next read will find out
      place.offset += chunk.length;
      place.mark = Buffer.concat([place.mark, chunk.subarray(-MARK_BYTES)]).subarray(-MARK_BYTES);
      events.push(...eventsOf(this.#splitter, chunk));
    }
    const atEnd = place.offset >= stat.size;
    place.mtimeMs = atEnd ? stat.mtimeMs : 0;
    return { events, bytes: place.offset - from, atEnd, fate: "there" };
  }
}

/**
 * Reads the end of a session's history, as far back as it takes to know whether the session is in a turn and since
 * when, but at most `maxBytes`. If a turn began before that part, it counts from the first event that was read.
 */
export function openHistory(home: string, sessionId: string, maxBytes: number) {
  const fd = openHistoryFile(home, sessionId);
  if (fd === null) {
    const events = new SessionEvents(home, sessionId, null, new LineSplitter());
    return { tracker: new TurnTracker(), events, ended: [], bytes: 0 };
  }
  try {
    const stat = fstatSync(fd);
    let bytes = 0;
    for (const window of [...WINDOWS_BYTES, Number.POSITIVE_INFINITY]) {
      const wanted = Math.min(window, maxBytes);
      const read = readEnd(fd, stat.size, Math.min(wanted, stat.size));
      bytes += read.bytes;
      const isAll = wanted >= stat.size;
      if (!isAll && wanted < maxBytes && !read.history.tracker.isCertain) continue;
      const place = { ino: stat.ino, offset: stat.size, mtimeMs: stat.mtimeMs, mark: read.mark };
      const { tracker, ended } = isAll ? read.history : certain(read, stat);
      return { tracker, ended, bytes, events: new SessionEvents(home, sessionId, place, read.splitter) };
    }
    throw new Error("unreachable: the last window is taken as it is");
  } finally {
    closeSync(fd);
  }
}

/**
 * Whether the history ends inside a turn: it has a prompt without an end. Use it after a server was stopped, to name the
 * turns that the stop cut. It also counts a turn that its client left or that `sessions.close` cut, until the session is
 * loaded again.
 *
 * @param sinceMs ignores turns that began earlier (milliseconds since the epoch). Pass the start of the stopped server,
 *   because a turn that an earlier server left never gets an end.
 * @throws a system error when the file cannot be read. A missing file has no turns.
 */
export function endsInsideTurn(home: string, sessionId: string, sinceMs = 0): boolean {
  const { tracker } = openHistory(home, sessionId, LONGEST_END_BYTES);
  const turn = tracker.isDoubtful ? null : (tracker.open ?? tracker.lastCut);
  return turn !== null && turn.startedAtMs >= sinceMs;
}

export interface RecordedPrompt {
  messageId: string | undefined;
  content: string | undefined;
}

/**
 * Returns the prompts after the first `fromBytes` bytes of the history. Ignores a line that is cut short, because the
 * runtime removes it when it loads the session (measured with 1.0.85).
 *
 * The runtime writes a prompt up to 0.1 s after it has called the model with it (measured with 1.0.85). So if the
 * server was killed, a prompt that is missing here may still have begun. Look for its `user.message` event, too.
 */
export function promptsSince(home: string, sessionId: string, fromBytes: number): RecordedPrompt[] {
  const fd = openHistoryFile(home, sessionId);
  if (fd === null) return [];
  try {
    const text = readAt(fd, fromBytes, Math.max(0, fstatSync(fd).size - fromBytes)).toString("utf8");
    const lines = text.split("\n").slice(0, -1);
    return lines.filter((line) => line.startsWith(PROMPT_LINE)).flatMap((line) => readPrompt(line) ?? []);
  } finally {
    closeSync(fd);
  }
}

const PROMPT_LINE = '{"type":"user.message"';

/** Returns null for a prompt inside a turn: one of a sub-agent, or one with which autopilot continues. */
function readPrompt(line: string): RecordedPrompt | null {
  const event = readEvent({ whole: Buffer.from(line) });
  if (event?.agentId != null || event?.data.isAutopilotContinuation === true) return null;
  const { messageId, content } = event?.data ?? {};
  return {
    messageId: typeof messageId === "string" ? messageId : undefined,
    content: typeof content === "string" ? content : undefined,
  };
}

interface ReadEnd {
  history: { tracker: TurnTracker; ended: EndedTurn[] };
  read: HistoryEvent[];
  splitter: LineSplitter;
  mark: Buffer;
  bytes: number;
}

function readEnd(fd: number, size: number, bytes: number): ReadEnd {
  const splitter = new LineSplitter({ skipFirst: bytes < size });
  const chunk = readAt(fd, size - bytes, bytes);
  const read = eventsOf(splitter, chunk);
  const mark = Buffer.from(chunk.subarray(-MARK_BYTES));
  return { history: follow(new TurnTracker(), read), read, splitter, mark, bytes: chunk.length };
}

/** If no turn begins in the longest end that we may read, all of that end is inside one turn. Nothing else is that long. */
function certain({ history, read }: ReadEnd, stat: Stats): ReadEnd["history"] {
  if (history.tracker.open !== null || history.tracker.isCertain) return history;
  return follow(TurnTracker.within(read[0]?.atMs ?? stat.mtimeMs), read);
}

function follow(tracker: TurnTracker, events: readonly HistoryEvent[]): ReadEnd["history"] {
  return { tracker, ended: events.flatMap((event) => tracker.push(event) ?? []) };
}

function eventsOf(splitter: LineSplitter, chunk: Buffer): HistoryEvent[] {
  return [...splitter.push(chunk)].flatMap((line) => readEvent(line) ?? []);
}

function isUnchanged(place: Place, seen: Stats): boolean {
  return seen.ino === place.ino && seen.size === place.offset && seen.mtimeMs === place.mtimeMs;
}

function isContinued(fd: number, place: Place, stat: Stats): boolean {
  if (stat.ino !== place.ino || stat.size < place.offset) return false;
  return readAt(fd, place.offset - place.mark.length, place.mark.length).equals(place.mark);
}

function nothing(fate: Appended["fate"]): Appended {
  return { events: [], bytes: 0, atEnd: true, fate };
}

function readAt(fd: number, position: number, length: number): Buffer {
  const buffer = Buffer.allocUnsafe(length);
  let filled = 0;
  while (filled < length) {
    const bytes = readSync(fd, buffer, filled, length - filled, position + filled);
    if (bytes === 0) break;
    filled += bytes;
  }
  return buffer.subarray(0, filled);
}
