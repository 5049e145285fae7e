import { randomUUID } from "node:crypto";
import { withReason } from "../../runtime/history/turn-tracker.js";
import { namesPrompts } from "../../runtime/launch/versions.js";
import { encodeMessage } from "../../runtime/wire/frames.js";
import { parse } from "../../runtime/wire/scan.js";

/** A session event, with the fields that the front door reads. Events of a sub-agent have its `agentId`. */
interface SessionEvent {
  agentId?: string;
  data?: Record<string, unknown>;
}

/** The event in a `session.event` frame. */
export function eventIn(body: Buffer): SessionEvent {
  return (parse(body) as { params: { event: SessionEvent } }).params.event;
}

/** The frame of a `session.error`, with the reason as its message. */
export function errorFrame(body: Buffer): { frame: Buffer; data: Record<string, unknown> } {
  const message = parse(body) as { params: { event: SessionEvent & { type: string; data: Record<string, unknown> } } };
  const event = withReason(message.params.event);
  return { frame: encodeMessage({ ...message, params: { ...message.params, event } }), data: event.data };
}

/**
 * The `session.error` and `session.idle` that the door sends to a client when the server does not send the end of a
 * turn (shapes: `session-events.d.ts` of the SDK). The session's history contains neither event.
 */
export function brokenTurnFrames(sessionId: string, message: string): Buffer[] {
  const error = { type: "session.error", data: { errorType: "server_lost", message } };
  const idle = { type: "session.idle", data: { aborted: true } };
  return [error, idle].map((event) => eventFrame(sessionId, event));
}

/** The `session.shutdown` that the door sends to a client when the server does not send it. */
export function shutdownFrame(sessionId: string): Buffer {
  return eventFrame(sessionId, { type: "session.shutdown", data: { shutdownType: "routine" } });
}

function eventFrame(sessionId: string, event: { type: string; data: object }): Buffer {
  return encodeMessage({
    method: "session.event",
    params: {
      sessionId,
      event: { ...event, ephemeral: true, id: randomUUID(), timestamp: new Date().toISOString(), parentId: null },
    },
  });
}

/** Whether a `session.idle` ends the turn that a prompt started. */
export function endsTurn(body: Buffer): boolean {
  const { agentId, data } = eventIn(body);
  // The turn continues after a sub-agent's `session.idle`. In autopilot mode, the session continues by itself.
  return agentId === undefined && data?.mode !== "autopilot";
}

/**
 * The message id in a `user.message`, by which the server reports that it has begun a prompt; undefined for a
 * sub-agent's message within a turn, or without an id.
 */
export function promptIn(body: Buffer): string | undefined {
  const { agentId, data } = eventIn(body);
  return agentId === undefined && typeof data?.messageId === "string" ? data.messageId : undefined;
}

/** The result in a server's answer; undefined if the answer is an error. */
export function resultIn(body: Buffer): unknown {
  return (parse(body) as { result?: unknown }).result;
}

/**
 * The message ids in the result of a server's answer to a prompt. Empty if no `user.message` of that server will show
 * them.
 *
 * @param greeting the server's answer to `connect`
 */
export function messageIdsOf(result: unknown, greeting: { version?: unknown }): string[] {
  if (!namesPrompts(greeting.version)) return [];
  const { messageId, messageIds } = (result ?? {}) as { messageId?: unknown; messageIds?: unknown };
  const ids = Array.isArray(messageIds) ? messageIds : [messageId];
  return ids.filter((id) => typeof id === "string");
}

/** Whether an answer is the runtime's error for a session that it does not have in memory. */
export function saysUnloaded(body: Buffer): boolean {
  const { error } = parse(body) as { error?: { message?: unknown } };
  return typeof error?.message === "string" && /session not found/i.test(error.message);
}
