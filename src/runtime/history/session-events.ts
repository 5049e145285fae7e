import { closeSync, fstatSync, lstatSync, type Stats } from "node:fs";
import { readAt } from "../../base/if-there.js";
import {
  assertReadable,
  type HistoryEvent,
  type HistoryFate,
  type HistoryPosition,
  type Line,
  LineSplitter,
  LONGEST_LINE_BYTES,
  markOf,
  nextPiece,
  PIECE_BYTES,
  readEvent,
  readPart,
} from "./line.js";
import { historyPath, openHistoryFile } from "./session-state.js";
import { type EndedTurn, TurnTracker } from "./turn-tracker.js";

const CHUNK_BYTES = 256 * 1024;
/**
 * How many bytes to read from the end of a history. If they do not show whether the session is in a turn, we try the
 * next size.
 */
const WINDOWS_BYTES = [4 * 1024, 64 * 1024, 1024 * 1024];
/** After this many milliseconds, a read ends with the chunk that it is in. A chunk of empty lines takes 50 ms. */
const READ_MS = 50;
const LONGEST_END_BYTES = 1024 * 1024;

export interface Appended {
  events: HistoryEvent[];
  bytes: number;
  atEnd: boolean;
  fate: HistoryFate;
}

/** The position up to which we have read. */
interface Position extends HistoryPosition {
  /** The file's modification time when we last read it to its end; 0 if we did not reach the end. */
  mtimeMs: number;
}

/**
 * Reads the events that are appended to one session's history. Returns the event of a half-written line once the line
 * is complete.
 */
export class SessionEvents {
  readonly #home: string;
  readonly #sessionId: string;
  #position: Position | null;
  #splitter: LineSplitter;

  /** @param position null when the file does not exist yet. */
  constructor(home: string, sessionId: string, position: Position | null, splitter: LineSplitter) {
    this.#home = home;
    this.#sessionId = sessionId;
    this.#position = position;
    this.#splitter = splitter;
  }

  /**
   * Reads the events since the last call. Costs only one `lstat` if the file has not changed since it was read to its
   * end.
   *
   * @param maxBytes how much to read at most, rounded up to a multiple of 256 KB. A read may end earlier, after 50 ms.
   */
  read(maxBytes: number): Appended {
    const seen = lstatSync(historyPath(this.#home, this.#sessionId), { throwIfNoEntry: false });
    if (this.#position !== null && seen !== undefined && isUnchanged(this.#position, seen))
      return { events: [], bytes: 0, atEnd: true, fate: "there" };
    const fd = seen === undefined ? null : openHistoryFile(this.#home, this.#sessionId);
    const read: Appended = { events: [], bytes: 0, atEnd: true, fate: "gone" };
    if (fd === null) {
      this.#position = null;
      this.#splitter = new LineSplitter();
      return read;
    }
    try {
      const until = performance.now() + READ_MS;
      do {
        const part = readPart(fd, this.#sessionId, this.#position, CHUNK_BYTES);
        Object.assign(read, { atEnd: part.atEnd, fate: part.fate });
        if (part.at === null || part.fate === "replaced") break;
        this.#position = { ...part.at, mtimeMs: part.atEnd ? (seen?.mtimeMs ?? 0) : 0 };
        read.bytes += part.bytes.length;
        for (const event of eventsOf(this.#splitter, part.bytes)) read.events.push(event);
      } while (!read.atEnd && read.bytes < maxBytes && performance.now() <= until);
      return read;
    } finally {
      closeSync(fd);
    }
  }
}

/**
 * Reads the end of a session's history, at most `maxBytes`. Reads only as much as it needs to be certain whether the
 * session is in a turn, and when that turn began. If the turn began before the part that was read, the time of the
 * first event in that part counts as the turn's beginning.
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
      const position = { ino: stat.ino, offset: stat.size, mtimeMs: stat.mtimeMs, mark: read.mark };
      const { tracker, ended } = isAll ? read.history : certain(read, stat);
      return { tracker, ended, bytes, events: new SessionEvents(home, sessionId, position, read.splitter) };
    }
    throw new Error("unreachable: the last window is taken as it is");
  } finally {
    closeSync(fd);
  }
}

/**
 * Whether the history ends inside a turn. After a server was stopped, this shows whether the stop cut a turn. Until the
 * session is loaded again, this is also true for a turn that was cut because its client left or called
 * `sessions.close`.
 *
 * @param sinceMs Turns that began before this time do not count (Unix time in milliseconds). Pass the time when the
 * stopped server started, because an earlier server may have left a turn whose end never reaches the history.
 * @throws a system error when the file cannot be read. A missing file has no turns.
 */
export function endsInsideTurn(home: string, sessionId: string, sinceMs = 0): boolean {
  const { tracker } = openHistory(home, sessionId, LONGEST_END_BYTES);
  const turn = tracker.isDoubtful ? null : (tracker.open ?? tracker.lastCut);
  return turn !== null && turn.startedAtMs >= sinceMs;
}

export interface RecordedPrompt {
  messageId?: string | undefined;
  content?: string | undefined;
}

/**
 * The prompts after the first `fromBytes` bytes of the history. Ignores an incomplete last line, because the runtime
 * removes such a line when it loads the session (measured with 1.0.85).
 *
 * The runtime writes a prompt to the history up to 0.1 s after it has sent the prompt to the model (measured with
 * 1.0.85). So if the server was killed, a prompt that is missing here may have begun all the same. `watchPrompt`
 * detects this: it looks for the prompt's `user.message` event on the client's connection.
 *
 * @throws FleetError `FLEET_SESSION_LOST` when the history after these bytes is too long to be read
 */
export async function promptsSince(home: string, sessionId: string, fromBytes: number): Promise<RecordedPrompt[]> {
  const fd = openHistoryFile(home, sessionId);
  if (fd === null) return [];
  try {
    const { size } = fstatSync(fd);
    assertReadable(size, sessionId, fromBytes);
    const splitter = new LineSplitter({ wholeBytes: LONGEST_LINE_BYTES });
    const prompts: RecordedPrompt[] = [];
    for (let at = fromBytes; at < size; at += PIECE_BYTES) {
      if (at > fromBytes) await nextPiece();
      for (const line of splitter.push(readAt(fd, at, Math.min(PIECE_BYTES, size - at)))) {
        if (isPromptLine(line)) prompts.push(...readPrompt(line));
      }
    }
    return prompts;
  } finally {
    closeSync(fd);
  }
}

const PROMPT_LINE = Buffer.from('{"type":"user.message"');

function isPromptLine(line: Line): boolean {
  return ("whole" in line ? line.whole : line.head).subarray(0, PROMPT_LINE.length).equals(PROMPT_LINE);
}

/**
 * The prompt in a line. Empty for a prompt inside a turn: a sub-agent's prompt, or a prompt with which autopilot
 * continues.
 */
function readPrompt(line: Line): RecordedPrompt[] {
  const event = readEvent(line);
  if (event?.agentId != null || event?.data.isAutopilotContinuation === true) return [];
  const { messageId, content } = event?.data ?? {};
  return [
    {
      messageId: typeof messageId === "string" ? messageId : undefined,
      content: typeof content === "string" ? content : undefined,
    },
  ];
}

interface ReadEnd {
  history: { tracker: TurnTracker; ended: EndedTurn[] };
  read: HistoryEvent[];
  splitter: LineSplitter;
  mark: string;
  bytes: number;
}

function readEnd(fd: number, size: number, bytes: number): ReadEnd {
  const splitter = new LineSplitter({ skipFirst: bytes < size });
  const chunk = readAt(fd, size - bytes, bytes);
  const read = eventsOf(splitter, chunk);
  return { history: follow(new TurnTracker(), read), read, splitter, mark: markOf(chunk), bytes: chunk.length };
}

/**
 * Returns the turns in the longest part of the history that we may read. If this part contains neither a load of the
 * session nor the beginning of a turn, all of it counts as one turn, because only a turn writes that much.
 */
function certain({ history, read }: ReadEnd, stat: Stats): ReadEnd["history"] {
  if (history.tracker.open !== null || history.tracker.isCertain) return history;
  return follow(TurnTracker.within(read[0]?.atMs ?? stat.mtimeMs), read);
}

function follow(tracker: TurnTracker, events: readonly HistoryEvent[]): ReadEnd["history"] {
  return { tracker, ended: events.flatMap((event) => tracker.push(event) ?? []) };
}

function eventsOf(splitter: LineSplitter, chunk: Buffer): HistoryEvent[] {
  const events: HistoryEvent[] = [];
  for (const line of splitter.push(chunk)) {
    const event = readEvent(line);
    if (event !== null) events.push(event);
  }
  return events;
}

function isUnchanged(position: Position, seen: Stats): boolean {
  return seen.ino === position.ino && seen.size === position.offset && seen.mtimeMs === position.mtimeMs;
}
