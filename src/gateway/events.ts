import { randomUUID } from "node:crypto";
import { encodeMessage } from "./refusals.js";
import { parse } from "./server-message.js";

/**
 * What a client gets for a turn that ended without its server saying so: the error and the idle that the runtime itself
 * would have sent (their shape: `session-events.d.ts` of the SDK). Neither is in the session's history.
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

/** Whether a `session.idle` of the wire is the end of what a prompt set off. */
export function endsTurn(body: Buffer): boolean {
  const { event } = (parse(body) as { params: { event: IdleEvent } }).params;
  // A sub-agent's end is inside the turn, and an autopilot goes on by itself.
  return event.agentId === undefined && event.data?.mode !== "autopilot";
}

interface IdleEvent {
  agentId?: string;
  data?: { mode?: string };
}
