import type { Line } from "./history-line.js";

/** One event of a session's history, as far as turns are concerned. */
export interface HistoryEvent {
  type: string;
  /** Set when it is a sub-agent's. */
  agentId: string | null;
  /** Milliseconds since the epoch, by the clock of the server's machine. */
  atMs: number;
  data: Record<string, unknown>;
}

/** Those of which more is needed than when they were. The others (a prompt of 20 KB, a diff) are not parsed when long. */
const TELLING = new Set([
  "user.message",
  "assistant.message",
  "tool.execution_start",
  "tool.execution_complete",
  "session.resume",
]);
const SHORT_BYTES = 8192;
const HEAD = /^\{"type":"([^"\\]+)"/;
/** What stands behind `data`: inside a JSON text every quotation mark is escaped, so none of it can look like this. */
const TRAILER = /\},(?:"agentId":"([^"\\]*)",)?"id":"[^"\\]*","timestamp":"([^"\\]*)"[^{}]*\}\s*$/;

/** The event of a line, or null for anything else: cut short, not JSON, without a type or a time. */
export function readEvent(line: Line): HistoryEvent | null {
  if (!("whole" in line)) return abridged(line.head, line.tail);
  const { whole } = line;
  if (whole.length > SHORT_BYTES) {
    const type = HEAD.exec(whole.toString("utf8", 0, 100))?.[1];
    const event = type === undefined || TELLING.has(type) ? null : abridged(whole, whole);
    if (event !== null) return event;
  }
  let value: unknown;
  try {
    value = JSON.parse(whole.toString("utf8"));
  } catch {
    return null;
  }
  if (!isObject(value) || typeof value.type !== "string") return null;
  const agentId = typeof value.agentId === "string" ? value.agentId : null;
  return timed({ type: value.type, agentId, data: isObject(value.data) ? value.data : {} }, value.timestamp);
}

/**
 * By the order in which the runtime of SDK 1.0.14 writes the fields: type, data, agentId, id, timestamp, parentId. Of
 * the data there is only what is looked for in a long line, and no error: a refusal is short.
 */
function abridged(head: Buffer, tail: Buffer): HistoryEvent | null {
  const begin = head.toString("utf8", 0, Math.min(head.length, SHORT_BYTES));
  const end = tail.toString("utf8", Math.max(0, tail.length - SHORT_BYTES));
  const [, type] = HEAD.exec(begin) ?? [];
  const [, agentId = null, timestamp] = TRAILER.exec(end) ?? [];
  if (type === undefined) return null;
  const data: Record<string, unknown> = { abridged: true };
  const toolCallId = /^\{"type":"[^"]*","data":\{"toolCallId":"([^"\\]*)"/.exec(begin)?.[1];
  if (toolCallId !== undefined) data.toolCallId = toolCallId;
  const delivery = /"delivery":"(\w+)"/.exec(end)?.[1];
  if (delivery !== undefined) data.delivery = delivery;
  const interactionId = /"interactionId":"([^"\\]*)"/.exec(end)?.[1];
  if (interactionId !== undefined) data.interactionId = interactionId;
  return timed({ type, agentId, data }, timestamp);
}

function timed(event: Omit<HistoryEvent, "atMs">, timestamp: unknown): HistoryEvent | null {
  const atMs = typeof timestamp === "string" ? Date.parse(timestamp) : Number.NaN;
  return Number.isNaN(atMs) ? null : { ...event, atMs };
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
