import { parse } from "./server-message.js";

/** Something that a server asked the clients of one session by an event, and that they answer by its id. */
export interface SessionRequest {
  /** Of a permission request: what it is about. */
  kind: string | undefined;
  /** The name of the tool that a client brought, and that the request is about. */
  tool: string | undefined;
}

/** The events that ask for an answer, and the methods that give it. */
const ANSWERED_BY = new Map(
  Object.entries({
    "external_tool.requested": ["session.tools.handlePendingToolCall"],
    "command.execute": ["session.commands.handlePendingCommand"],
    "command.queued": ["session.commands.respondToQueuedCommand"],
    "elicitation.requested": ["session.ui.handlePendingElicitation"],
    "user_input.requested": ["session.ui.handlePendingUserInput"],
    "sampling.requested": ["session.ui.handlePendingSampling"],
    "auto_mode_switch.requested": ["session.ui.handlePendingAutoModeSwitch"],
    "session_limits_exhausted.requested": ["session.ui.handlePendingSessionLimitsExhausted"],
    "exit_plan_mode.requested": ["session.ui.handlePendingExitPlanMode"],
    "mcp.oauth_required": ["session.mcp.oauth.handlePendingRequest", "session.mcp.oauth.respond"],
    "mcp.headers_refresh_required": ["session.mcp.headers.handlePendingHeadersRefreshRequest"],
    // The runtime itself ties these to their sessions (measured with 1.0.85).
    "permission.requested": [],
  }),
);

const ANSWERS = new Set<string>([...ANSWERED_BY.values()].flat());

/** Whether a method answers a request of a server that the runtime knows by its id alone, whichever session that is in. */
export function isAnswer(method: string): boolean {
  return ANSWERS.has(method);
}

const MAX_REQUESTS = 1_000;
const MAX_SESSIONS = 10_000;

/**
 * The requests that servers made in sessions that clients of this door have open. The runtime has one table of them for all
 * sessions of a server: which session a request belongs to is known from its event alone. It is kept for the door's
 * lifetime, not a client's, so that a user who connects again can answer what was asked before.
 */
export class SessionRequests {
  readonly #sessions = new Map<string, Map<string, SessionRequest>>();

  /** Takes note of an event, if it asks for an answer. */
  note(sessionId: string, eventType: string, body: Buffer): void {
    if (!ANSWERED_BY.has(eventType)) return;
    const { requestId, toolName, permissionRequest } =
      (parse(body) as { params: { event: RequestEvent } }).params.event.data ?? {};
    if (typeof requestId !== "string") return;
    const { kind, toolName: permitted } = permissionRequest ?? {};
    const [tool] = [toolName, permitted].filter((name) => typeof name === "string");
    const requests = this.#of(sessionId);
    requests.set(requestId, { kind: typeof kind === "string" ? kind : undefined, tool });
    dropOldest(requests, MAX_REQUESTS);
  }

  /** What was asked in that session under that id. */
  get(sessionId: string, requestId: unknown): SessionRequest | undefined {
    return typeof requestId === "string" ? this.#sessions.get(sessionId)?.get(requestId) : undefined;
  }

  /** The session's requests. It becomes the one that was used last. */
  #of(sessionId: string): Map<string, SessionRequest> {
    const requests = this.#sessions.get(sessionId) ?? new Map<string, SessionRequest>();
    this.#sessions.delete(sessionId);
    this.#sessions.set(sessionId, requests);
    dropOldest(this.#sessions, MAX_SESSIONS);
    return requests;
  }
}

function dropOldest(map: Map<string, unknown>, most: number): void {
  const oldest = map.keys().next().value;
  if (map.size > most && oldest !== undefined) map.delete(oldest);
}

interface RequestEvent {
  data?: { requestId?: unknown; toolName?: string; permissionRequest?: { kind?: unknown; toolName?: string } };
}
