import { isObject } from "../../config/values/json.js";
import { type Line, parseLine } from "./line.js";

export interface HistoryEvent {
  type: string;
  /** The sub-agent's id. Null for an event of the main agent. */
  agentId: string | null;
  /** Unix time in milliseconds, by the clock of the server's machine. */
  atMs: number;
  data: Record<string, unknown>;
}

/**
 * The types of events whose data we need. We do not parse long events of other types, such as a system prompt of 20 KB.
 */
const TELLING = new Set([
  "user.message",
  "assistant.message",
  "tool.execution_start",
  "tool.execution_complete",
  "session.resume",
  "session.shutdown",
]);
const SHORT_BYTES = 8192;
const HEAD = /^\{"type":"([^"\\]+)"/;
/**
 * Matches the fields after `data`. It cannot match text inside `data`, because JSON escapes the quotation marks there.
 */
const TRAILER = /\},(?:"agentId":"([^"\\]*)",)?"id":"[^"\\]*","timestamp":"([^"\\]*)"[^{}]*\}\s*$/;

/** Reads the event from a line of the history. Null if the line is incomplete, is not JSON, or has no type or time. */
export function readEvent(line: Line): HistoryEvent | null {
  if (!("whole" in line)) return abridged(line.head, line.tail);
  const { whole } = line;
  if (whole.length > SHORT_BYTES) {
    const type = HEAD.exec(whole.toString("utf8", 0, 100))?.[1];
    const event = type === undefined || TELLING.has(type) ? null : abridged(whole, whole);
    if (event !== null) return event;
  }
  const value = parseLine(whole);
  if (value === null || typeof value.type !== "string") return null;
  const agentId = typeof value.agentId === "string" ? value.agentId : null;
  return timed({ type: value.type, agentId, data: isObject(value.data) ? value.data : {} }, value.timestamp);
}

/**
 * Reads an event from the first and the last bytes of its line. Depends on the order in which the runtime of SDK 1.0.14
 * writes the fields: type, data, agentId, id, timestamp, parentId.
 */
function abridged(head: Buffer, tail: Buffer): HistoryEvent | null {
  const begin = head.toString("utf8", 0, Math.min(head.length, SHORT_BYTES));
  const end = tail.toString("utf8", Math.max(0, tail.length - SHORT_BYTES));
  const [, type] = HEAD.exec(begin) ?? [];
  const [, agentId = null, timestamp] = TRAILER.exec(end) ?? [];
  if (type === undefined) return null;
  const data = {
    abridged: true,
    toolCallId: /^\{"type":"[^"]*","data":\{"toolCallId":"([^"\\]*)"/.exec(begin)?.[1],
    delivery: /"delivery":"(\w+)"/.exec(end)?.[1],
    interactionId: /"interactionId":"([^"\\]*)"/.exec(end)?.[1],
  };
  return timed({ type, agentId, data }, timestamp);
}

function timed(event: Omit<HistoryEvent, "atMs">, timestamp: unknown): HistoryEvent | null {
  const atMs = typeof timestamp === "string" ? Date.parse(timestamp) : Number.NaN;
  return Number.isNaN(atMs) ? null : { ...event, atMs };
}
