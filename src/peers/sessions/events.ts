import type { SessionEvent } from "@github/copilot-sdk";
import { isObject } from "../../config/values/json.js";
import { FleetError, quote } from "../../errors.js";
import { type Line, LineSplitter } from "../../runtime/history/line.js";
import { type HistoryContext, type HistoryPartsRequest, historyParts } from "./history-parts.js";

export interface EventsRequest extends HistoryPartsRequest {
  /** The id of the last event that the caller has. Default: yields all events. */
  after?: string | undefined;
}

/** A longer line is left out, so that it does not fill the memory. The front door passes prompts of up to 8 MB. */
const LONGEST_BYTES = 16 * 1024 * 1024;

/**
 * Yields the events in the history of a session on any host, each once and in their order. Its ids are the runtime's own, so
 * a caller can go on after any event: in another process, at another host, and after a crash of the server. Deltas and other
 * events that the runtime does not record are not included.
 *
 * A runtime that loads a session may replace its history. Reading then goes on after the last event that was yielded.
 *
 * @throws FleetError like {@link historyParts}; `FLEET_USAGE_INVALID` when the history does not have the event `after`.
 */
export async function* readEvents(
  context: HistoryContext,
  id: string,
  { after, ...request }: EventsRequest,
): AsyncGenerator<SessionEvent, void, undefined> {
  let last = after;
  let splitter = new LineSplitter({ wholeBytes: LONGEST_BYTES });
  /** Whether the reader has not reached the event `last` so far. */
  let isSearching = last !== undefined;
  let unreadable = 0;
  for await (const { bytes, atEnd, fate } of historyParts(context, id, request)) {
    if (fate === "replaced") {
      splitter = new LineSplitter({ wholeBytes: LONGEST_BYTES });
      isSearching = last !== undefined;
      continue;
    }
    for (const line of splitter.push(bytes)) {
      if (isSearching) {
        isSearching = idOf(line, last) !== last;
        continue;
      }
      const event = eventOf(line);
      if (event === null) unreadable++;
      else yield event;
      last = event?.id ?? last;
    }
    if (atEnd && isSearching) throw notThere(id, last);
    if (atEnd && unreadable > 0) context.warn(damageOf(id, unreadable));
    if (atEnd) unreadable = 0;
  }
}

function eventOf(line: Line): SessionEvent | null {
  if (!("whole" in line)) return null;
  let value: unknown;
  try {
    value = JSON.parse(line.whole.toString("utf8"));
  } catch {
    return null;
  }
  const isEvent = isObject(value) && typeof value.id === "string" && typeof value.type === "string";
  return isEvent ? (value as unknown as SessionEvent) : null;
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
