import type { SessionEvent } from "@github/copilot-sdk";
import { endingAtOnce, NEVER } from "../../base/clock.js";
import { FleetError, quote } from "../../base/errors.js";
import {
  type HistoryFate,
  type HistoryPosition,
  type Line,
  LineSplitter,
  LONGEST_LINE_BYTES,
  nextPiece,
  PIECE_BYTES,
  parseLine,
} from "../../runtime/history/line.js";
import { Transcriber, type TranscriptEntry } from "../../runtime/history/transcript.js";
import { withReason } from "../../runtime/history/turn-tracker.js";
import { sessionNotFound } from "../../sessions/problems.js";
import type { Histories } from "../../sessions/use/keyed.js";
import type { SessionFinder } from "../../sessions/view.js";
import { type GatherSessionsContext, viewSessionOf } from "../gather.js";
import type { HistoryFeeds } from "./feeds.js";

/** How often to read a history whose last turn has no final event but may be over, in milliseconds. */
const QUIET_MS = 250;
/** The longest transcript that is collected in memory, in bytes. People do not read as much. */
const MOST_KEPT_BYTES = 16 * 1024 * 1024;
const ENTRY_BYTES = 200;

interface TranscriptRequest extends HistoryPartsRequest {
  /** Yields only this many turns, the last ones. Default: all turns. */
  turns?: number | undefined;
}

/**
 * Yields the conversation of a session on any host. Warns about lines that cannot be read.
 *
 * @throws FleetError like {@link historyParts}; `FLEET_STATE_BUSY` when the history was replaced; `FLEET_USAGE_INVALID`
 * when the last `turns` are too long to be collected.
 */
export async function* readTranscript(
  context: HistoryContext,
  id: string,
  { turns, ...request }: TranscriptRequest,
): AsyncGenerator<TranscriptEntry, void, undefined> {
  const { user, follow = false } = request;
  const { kind, owner } = await context.finder.find(id, user);
  // Any member may have sent a prompt to a collaborative session, and the history does not name the sender.
  const transcriber = new Transcriber(kind === "private" ? owner : null);
  const isLoaded = async () => transcriber.isInTurn && (await mayBeLoaded(context, id, user));
  const kept = turns === undefined ? null : new LastTurns(id, turns);
  let isFirstTime = true;
  const atLeastMs = () => (transcriber.isFading ? QUIET_MS : undefined);
  for await (const part of historyParts(context, id, { ...request, atLeastMs })) {
    if (part.fate === "replaced") throw replaced(id);
    const added = transcriber.push(part.bytes);
    if (isFirstTime && kept !== null) kept.add(added);
    else yield* added;
    if (!part.atEnd) continue;
    const last = follow ? transcriber.pause(Date.now()) : transcriber.end(Date.now(), await isLoaded());
    if (isFirstTime && kept !== null) yield* kept.add(last).entries;
    else yield* last;
    if (isFirstTime && transcriber.damage !== null) context.warn(damageOf(id, transcriber.damage));
    isFirstTime = false;
  }
}

/** Like {@link readTranscript}, and ends at once when the caller stops reading. */
export function followTranscript(
  context: HistoryContext,
  id: string,
  request: TranscriptRequest,
): AsyncGenerator<TranscriptEntry, void, undefined> {
  return endingAtOnce(request.signal, (signal) => readTranscript(context, id, { ...request, signal }));
}

async function mayBeLoaded(context: HistoryContext, id: string, user: string): Promise<boolean> {
  const { state, stranded } = await viewSessionOf(context, id, user);
  return state !== "idle" || stranded;
}

function replaced(id: string): FleetError {
  return new FleetError("FLEET_STATE_BUSY", `The history of session ${quote(id)} was replaced while it was read.`, {
    suggestions: ["Try again."],
  });
}

/** Keeps the entries of the last `turns` turns. */
class LastTurns {
  readonly entries: TranscriptEntry[] = [];
  readonly #id: string;
  readonly #turns: number;
  #bytes = 0;

  constructor(id: string, turns: number) {
    this.#id = id;
    this.#turns = turns;
  }

  add(added: Iterable<TranscriptEntry>): this {
    for (const entry of added) {
      this.entries.push(entry);
      this.#bytes += bytesOf(entry);
      const isKept = ({ turn }: TranscriptEntry) => turn > entry.turn - this.#turns;
      if (this.entries[0] !== undefined && !isKept(this.entries[0])) {
        // Remove the old entries at once: an agent can give a turn a million entries, and `shift` moves all that
        // follow.
        const from = this.#turns === 0 ? this.entries.length : this.entries.findIndex(isKept);
        for (const old of this.entries.splice(0, from)) this.#bytes -= bytesOf(old);
      }
      if (this.#bytes > MOST_KEPT_BYTES) throw tooLong(this.#id);
    }
    return this;
  }
}

/** About how many bytes the entry takes in an answer. */
function bytesOf({ text, failure }: TranscriptEntry): number {
  return ENTRY_BYTES + text.length + (failure?.length ?? 0);
}

function tooLong(id: string): FleetError {
  return new FleetError(
    "FLEET_USAGE_INVALID",
    `The transcript of session ${quote(id)} has more than ${MOST_KEPT_BYTES} bytes, which is too much for one answer.`,
    { suggestions: ["Ask for fewer turns.", `copilotfleet transcript ${id} --user USER`] },
  );
}

function damageOf(id: string, { lines, firstLine }: NonNullable<Transcriber["damage"]>): string {
  const what = lines === 1 ? `Line ${firstLine}` : `${lines} lines, from line ${firstLine} on,`;
  return `${what} of the history of session ${quote(id)} cannot be read and ${lines === 1 ? "is" : "are"} left out.`;
}

export interface HistoryContext extends GatherSessionsContext {
  finder: SessionFinder;
  feeds: HistoryFeeds;
}

interface HistoryPartsRequest {
  user: string;
  /** Also yields what is added later, until the signal aborts. */
  follow?: boolean | undefined;
  /**
   * After how many milliseconds to yield a part even without a change. Default, and for undefined: only after a change.
   */
  atLeastMs?: () => number | undefined;
  signal?: AbortSignal | undefined;
}

/** A piece of a history. The next part is read only when the consumer asks for it. */
interface ReadPart {
  bytes: Buffer;
  atEnd: boolean;
  /** `replaced`: the next part is the beginning of another history. */
  fate: Exclude<HistoryFate, "gone">;
}

/**
 * Yields the history of a session on any host, a piece at a time, so that a long history does not fill the memory.
 * Between pieces, lets other work in this process run. Checks for each megabyte that the user may still read the
 * session.
 *
 * @throws FleetError `FLEET_SESSION_NOT_FOUND` when the user may not use the session; `FLEET_SESSION_LOST`; and the
 * error of a host that cannot be reached.
 */
async function* historyParts(
  { hosts, finder, feeds }: HistoryContext,
  id: string,
  { user, follow = false, atLeastMs, signal = NEVER }: HistoryPartsRequest,
): AsyncGenerator<ReadPart, void, undefined> {
  using following = follow ? feeds.follow(id) : null;
  let from: HistoryPosition | undefined;
  for (;;) {
    signal.throwIfAborted();
    const { version, fate, at, ...part } = await finder.whereItIs(id, user, async (record, host) => {
      const version = await following?.feed.aim(record, host);
      const there = hosts.at(host === null ? { here: true } : { here: false, host });
      return { version, ...(await there.history({ id, user, from }, { signal })) };
    });
    if (fate === "gone") throw sessionNotFound(id);
    from = fate === "replaced" ? undefined : (at ?? undefined);
    const bytes = Buffer.from(part.bytes, "base64");
    for (let end = 0; ; ) {
      const begin = end;
      end = Math.min(begin + PIECE_BYTES, bytes.length);
      const isLast = end === bytes.length;
      yield { atEnd: part.atEnd && isLast, fate, bytes: bytes.subarray(begin, end) };
      if (isLast) break;
      await nextPiece();
      signal.throwIfAborted();
    }
    if (fate === "replaced" || !part.atEnd) {
      await nextPiece();
      continue;
    }
    if (following === null || version === undefined) return;
    await following.feed.changed(version, signal, atLeastMs?.());
    if (signal.aborted) return;
  }
}

interface EventsRequest extends HistoryPartsRequest {
  /** The id of the last event that the caller has. Default: yields all events. */
  after?: string | undefined;
}

/**
 * Yields the events in the history of a session on any host, each once and in their order. The ids are the runtime's
 * own, so a caller can continue after any event: in another process, on another host, and after a crash of the server.
 * Deltas and other events that the runtime does not record are not included.
 *
 * A runtime that loads a session may replace its history. Reading then continues after the last event that was yielded.
 *
 * @throws FleetError like {@link historyParts}; `FLEET_USAGE_INVALID` when the history does not have the event `after`.
 */
export async function* readEvents(
  context: HistoryContext,
  id: string,
  { after, ...request }: EventsRequest,
): AsyncGenerator<SessionEvent, void, undefined> {
  const reader = new EventReader(after);
  let unreadable = 0;
  for await (const { bytes, atEnd, fate } of historyParts(context, id, request)) {
    if (fate === "replaced") {
      reader.beginAgain();
      continue;
    }
    yield* reader.push(bytes);
    if (!atEnd) continue;
    if (reader.missing !== undefined) throw notThere(id, reader.missing);
    if (reader.unreadable > unreadable) context.warn(damageBefore(id, reader.unreadable - unreadable));
    unreadable = reader.unreadable;
  }
}

/** Like {@link readEvents}, and ends at once when the caller stops reading. */
export function followEvents(
  context: HistoryContext,
  id: string,
  request: EventsRequest,
): AsyncGenerator<SessionEvent, void, undefined> {
  return endingAtOnce(request.signal, (signal) => readEvents(context, id, { ...request, signal }));
}

/** Finds the events in the parts of a history. */
class EventReader {
  /** The number of lines so far that cannot be read. */
  unreadable = 0;
  /** The id of the last event that the caller has. */
  #last: string | undefined;
  #isSearching: boolean;
  #splitter = new LineSplitter({ wholeBytes: LONGEST_LINE_BYTES });

  constructor(after: string | undefined) {
    this.#last = after;
    this.#isSearching = after !== undefined;
  }

  /** The id of the event after which to begin. Undefined once it was found, or if the caller gave none. */
  get missing(): string | undefined {
    return this.#isSearching ? this.#last : undefined;
  }

  /** Call this when the next part begins another history. Continues after the last event that was yielded. */
  beginAgain(): void {
    this.#splitter = new LineSplitter({ wholeBytes: LONGEST_LINE_BYTES });
    this.#isSearching = this.#last !== undefined;
  }

  /**
   * Yields the events in a part. This is a separate generator, so that an idle reader does not keep a part in memory.
   */
  *push(bytes: Buffer): Generator<SessionEvent> {
    for (const line of this.#splitter.push(bytes)) {
      if (this.#isSearching) {
        this.#isSearching = idOf(line, this.#last) !== this.#last;
        continue;
      }
      const event = eventOf(line);
      if (event === null) this.unreadable++;
      else yield event;
      this.#last = event?.id ?? this.#last;
    }
  }
}

/** The recorded events of sessions on all hosts, for the turns with idempotency keys. */
export class RecordedEvents implements Histories {
  readonly #context: HistoryContext;

  constructor(context: HistoryContext) {
    this.#context = context;
  }

  events(id: string, options: HistoryPartsRequest): AsyncIterable<SessionEvent> {
    return readEvents(this.#context, id, options);
  }
}

/**
 * Whether the value is safe as an id or a type. The session's agent can write anything into the history, and ids and
 * types are sent in headers and streams, where a line break would end the field.
 */
function isName(value: unknown): boolean {
  return typeof value === "string" && /^[\w.:-]{1,200}$/.test(value);
}

function eventOf(line: Line): SessionEvent | null {
  if (!("whole" in line)) return null;
  const value = parseLine(line.whole);
  const isEvent = value !== null && isName(value.id) && isName(value.type);
  return isEvent ? withReason(value as unknown as SessionEvent) : null;
}

/** The id of the event in a line. Parses only a line that contains the wanted id. */
function idOf(line: Line, wanted: string | undefined): string | undefined {
  return "whole" in line && line.whole.includes(`"${wanted}"`) ? eventOf(line)?.id : undefined;
}

function notThere(id: string, event: string | undefined): FleetError {
  return new FleetError("FLEET_USAGE_INVALID", `The history of session ${quote(id)} has no event ${quote(event)}.`, {
    suggestions: ["Read the events from the beginning, because the history may have been changed."],
  });
}

function damageBefore(id: string, lines: number): string {
  const where = lines === 1 ? "one line, which is" : `${lines} lines, which are`;
  return `The history of session ${quote(id)} cannot be read in ${where} left out.`;
}
