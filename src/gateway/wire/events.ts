import { randomUUID } from "node:crypto";
import { encodeMessage } from "../../runtime/wire/frames.js";
import { parse } from "../../runtime/wire/server-message.js";

/**
 * The frames that a client gets when its server sends no end of a turn: the `session.error` and the `session.idle` that the
 * runtime would have sent (for their shape see `session-events.d.ts` of the SDK). Neither is in the session's history.
 */
export function brokenTurnFrames(sessionId: string, message: string): Buffer[] {
  const error = { type: "session.error", data: { errorType: "server_lost", message } };
  const idle = { type: "session.idle", data: { aborted: true } };
  return [error, idle].map((event) =>
    encodeMessage({
      method: "session.event",
      params: {
        sessionId,
        event: { ...event, ephemeral: true, id: randomUUID(), timestamp: new Date().toISOString(), parentId: null },
      },
    }),
  );
}

/** Whether a frame with a `session.idle` ends the turn that a prompt started. */
export function endsTurn(body: Buffer): boolean {
  const { event } = (parse(body) as { params: { event: IdleEvent } }).params;
  // The turn continues after the idle of a sub-agent. In autopilot mode, the session continues by itself.
  return event.agentId === undefined && event.data?.mode !== "autopilot";
}

/** The message id of the prompt that a `user.message` begins; undefined for a sub-agent's message within a turn. */
export function promptIn(body: Buffer): string | undefined {
  const { event } = (parse(body) as { params: { event: UserMessageEvent } }).params;
  const messageId = event.data?.messageId;
  return event.agentId === undefined && typeof messageId === "string" ? messageId : undefined;
}

interface UserMessageEvent {
  agentId?: string;
  data?: { messageId?: unknown };
}

/** The message ids in a server's answer to a prompt. */
export function messageIdsIn(body: Buffer): string[] {
  return messageIdsOf((parse(body) as { result?: unknown }).result);
}

/** The message ids in the result of such an answer. */
export function messageIdsOf(result: unknown): string[] {
  const { messageId, messageIds } = (result ?? {}) as { messageId?: unknown; messageIds?: unknown };
  const ids = Array.isArray(messageIds) ? messageIds : [messageId];
  return ids.filter((id) => typeof id === "string");
}

/** The message of a `session.error`. */
export function errorIn(body: Buffer): string {
  const { event } = (parse(body) as { params: { event: { data?: { message?: unknown } } } }).params;
  return String(event.data?.message);
}

interface IdleEvent {
  agentId?: string;
  data?: { mode?: string };
}

/** Whether an answer is the runtime's error for a session that it does not have in memory. */
export function saysUnloaded(body: Buffer): boolean {
  const { error } = parse(body) as { error?: { message?: unknown } };
  return typeof error?.message === "string" && isNotFound(error.message);
}

/** Whether an error's message is the runtime's for a session that it does not have in memory. */
function isNotFound(message: string): boolean {
  return /session not found/i.test(message);
}
