import type { AgentRequest, SessionEvent, TranscriptEntry } from "../api/types.js";

/** One part of a conversation, as the page shows it. Times are in ISO 8601, UTC. */
export type Item = { id: string } & (
  | {
      kind: "prompt";
      text: string;
      at: string;
      /** Whether this page sent the prompt. */
      isOwn: boolean;
      attachments: readonly string[];
    }
  | { kind: "reply"; text: string; at: string; state: "growing" | "whole" | "unfinished" }
  | { kind: "tool"; call: ToolCall }
  /** `bad`: the turn failed. `warn`: the reply is incomplete. */
  | { kind: "note"; text: string; tone: "" | "warn" | "bad" }
);

export interface ToolCall {
  name: string;
  /** The main argument, such as a command or a path. */
  argument: string;
  input: unknown;
  outcome: "running" | "completed" | "failed" | "refused" | "unfinished";
  output: string;
}

export interface Conversation {
  items: readonly Item[];
  requests: readonly AgentRequest[];
  /** Whether a turn runs, as far as the events show it. */
  isRunning: boolean;
  /** The ids of the recorded events so far. */
  seen: ReadonlySet<string>;
  /** The number of prompts for which {@link withFailures} has marked the end of the turn. */
  checked: number;
}

export const EMPTY: Conversation = { items: [], requests: [], isRunning: false, seen: new Set(), checked: 0 };

const REFUSED = new Set<unknown>(["rejected", "denied"]);

/**
 * Adds events of a stream. A recorded event has an id, and may arrive in two streams: that of the turn and that of the
 * session. It is added only once.
 */
export function withEvents(before: Conversation, events: readonly Arrived[]): Conversation {
  const seen = new Set(before.seen);
  let after = before;
  for (const { id, event, isOwnTurn } of events) {
    if (id !== null && seen.has(id)) {
      if (isOwnTurn) after = owned(after, event.id);
      continue;
    }
    if (id !== null) seen.add(id);
    after = apply(after, event, isOwnTurn);
  }
  return { ...after, seen };
}

export interface Arrived {
  /** Null for an event that is not recorded. */
  id: string | null;
  event: SessionEvent;
  /** Whether the event comes from the stream of a turn that this page began. */
  isOwnTurn: boolean;
}

function apply(state: Conversation, event: SessionEvent, isOwn: boolean): Conversation {
  const { type, data, timestamp: at, agentId } = event;
  if (type === "request.opened") return { ...state, requests: [...without(state.requests, data.id), data] };
  if (type === "request.closed") return { ...state, requests: without(state.requests, data.id) };
  // Skip the events of sub-agents, which have their own conversations.
  if (agentId !== undefined) return state;
  switch (type) {
    case "user.message":
      if (data.isAutopilotContinuation === true || (data.source ?? "user") !== "user") return state;
      return running(
        put(state, {
          kind: "prompt",
          id: event.id,
          text: textOf(data.content),
          at,
          isOwn,
          attachments: namesOf(data.attachments),
        }),
      );
    case "assistant.message_delta":
      return data.parentToolCallId === undefined ? withDelta(state, data, at) : state;
    case "assistant.message": {
      const text = textOf(data.content);
      const wantsTools = (data.toolRequests ?? []).length > 0;
      const answered = { ...state, isRunning: state.isRunning && (wantsTools || text === "") };
      return text === ""
        ? drop(answered, data.messageId)
        : put(answered, { kind: "reply", id: data.messageId, text, at, state: "whole" });
    }
    case "tool.execution_start":
      return running(put(state, { kind: "tool", id: data.toolCallId, call: callOf(data) }));
    case "tool.execution_complete": {
      const next = completed(state, data);
      const last = next.items.at(-1);
      // A tool that the user refused ends the turn without another event. If the user gave a reason, another step
      // follows.
      return last?.kind === "tool" && last.call.outcome === "refused" ? { ...next, isRunning: false } : next;
    }
    case "session.error":
      return ended(put(state, { kind: "note", id: event.id, text: textOf(data.message), tone: "bad" }));
    case "abort":
      return ended(put(state, { kind: "note", id: event.id, text: "The turn was stopped.", tone: "" }));
    case "turn.end":
    case "session.shutdown":
      return ended(state);
    default:
      return state;
  }
}

/** Marks a prompt as this page's own, if the stream of the session delivered it before the stream of the turn did. */
function owned(state: Conversation, id: string): Conversation {
  const item = state.items.findLast((each) => each.id === id);
  return item?.kind === "prompt" ? put(state, { ...item, isOwn: true }) : state;
}

/** Ends the turn of a conversation, for example because the server ended. */
export function ended(state: Conversation): Conversation {
  const items = state.items.map((item): Item => {
    if (item.kind === "tool" && item.call.outcome === "running")
      return { ...item, call: { ...item.call, outcome: "unfinished" } };
    return item.kind === "reply" && item.state === "growing" ? { ...item, state: "unfinished" } : item;
  });
  return { ...state, items, requests: [], isRunning: false };
}

/** How many of the last turns to look up in the transcript, because the events do not show how one of them ended. */
export function unexplained({ items, checked }: Conversation): number {
  const prompts = items.flatMap(({ kind }, index) => (kind === "prompt" ? [index] : []));
  const first = prompts.findIndex((_, turn) => {
    const last = items[(prompts[turn + 1] ?? items.length) - 1];
    return turn >= checked && last?.kind !== "note" && (last?.kind !== "reply" || last.state !== "whole");
  });
  return first === -1 ? 0 : prompts.length - first;
}

/** Marks turns without a complete reply in the words of the transcript. `entries` are the end of the transcript. */
export function withFailures(state: Conversation, entries: readonly TranscriptEntry[]): Conversation {
  const items = [...state.items];
  let end = items.length;
  let failure: string | null = null;
  for (const entry of entries.toReversed()) {
    failure ??= entry.failure;
    if (entry.role !== "user") continue;
    const prompt = items.findLastIndex(({ kind }, index) => kind === "prompt" && index < end);
    const id = items[prompt]?.id;
    if (id === undefined) break;
    if (failure !== null && items[end - 1]?.kind !== "note")
      items.splice(end, 0, { kind: "note", id: `end of ${id}`, text: `[incomplete] ${failure}`, tone: "warn" });
    [end, failure] = [prompt, null];
  }
  return { ...state, items, checked: items.filter(({ kind }) => kind === "prompt").length };
}

function running(state: Conversation): Conversation {
  return { ...state, isRunning: true };
}

function without(requests: readonly AgentRequest[], id: string): readonly AgentRequest[] {
  return requests.filter((request) => request.id !== id);
}

/** Replaces the item with the same id, or adds the item. */
function put(state: Conversation, item: Item): Conversation {
  const at = state.items.findLastIndex(({ kind, id }) => kind === item.kind && id === item.id);
  return { ...state, items: at === -1 ? [...state.items, item] : state.items.with(at, item) };
}

function drop(state: Conversation, id: string): Conversation {
  return { ...state, items: state.items.filter((item) => item.kind !== "reply" || item.id !== id) };
}

/** Adds a delta to its reply. Ignores a delta that arrives after the complete message. */
function withDelta(state: Conversation, delta: { messageId: string; deltaContent: string }, at: string): Conversation {
  const { messageId: id, deltaContent } = delta;
  const before = state.items.findLast((each) => each.kind === "reply" && each.id === id);
  if (before?.kind !== "reply") return put(state, { kind: "reply", id, text: deltaContent, at, state: "growing" });
  return before.state === "whole" ? state : put(state, { ...before, text: before.text + deltaContent });
}

// biome-ignore lint/suspicious/noExplicitAny: the data of an event of the runtime
function callOf(data: any): ToolCall {
  const given: unknown[] = isObject(data.arguments) ? Object.values(data.arguments) : [data.arguments];
  const argument = given.find((value): value is string => typeof value === "string") ?? "";
  return { name: data.toolName ?? "tool", argument, input: data.arguments, outcome: "running", output: "" };
}

// biome-ignore lint/suspicious/noExplicitAny: the data of an event of the runtime
function completed(state: Conversation, data: any): Conversation {
  const item = state.items.findLast((each) => each.kind === "tool" && each.id === data.toolCallId);
  if (item?.kind !== "tool") return state;
  const failure = REFUSED.has(data.error?.code) ? "refused" : "failed";
  const outcome = data.success === true ? "completed" : failure;
  const output = textOf(data.result?.content) || textOf(data.error?.message);
  return put(state, { ...item, call: { ...item.call, outcome, output } });
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}

function textOf(value: unknown): string {
  return typeof value === "string" ? value : "";
}

function namesOf(attachments: unknown): readonly string[] {
  if (!Array.isArray(attachments)) return [];
  return attachments
    .filter(isObject)
    .map(({ displayName, title, path, url, type }) =>
      String([displayName, title, path, url, type].find((name) => typeof name === "string" && name !== "") ?? "file"),
    );
}
