import type { SessionEvent } from "@github/copilot-sdk";
import { FleetError, quote } from "../../errors.js";
import { endingAtOnce } from "../../runtime/ending-at-once.js";
import { type Line, LineSplitter, LONGEST_LINE_BYTES, parseLine } from "../../runtime/history/line.js";
import { withReason } from "../../runtime/history/turn-failure.js";
import type { Histories } from "../../sessions/use/keyed/turn-journal.js";
import { type HistoryContext, type HistoryPartsRequest, historyParts } from "./history-parts.js";

export interface EventsRequest extends HistoryPartsRequest {
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
    if (reader.unreadable > unreadable) context.warn(damageOf(id, reader.unreadable - unreadable));
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

function damageOf(id: string, lines: number): string {
  const where = lines === 1 ? "one line, which is" : `${lines} lines, which are`;
  return `The history of session ${quote(id)} cannot be read in ${where} left out.`;
}
