import type { ServerQuestion } from "../../policy/reach.js";
import { eventIn } from "../../wire/events.js";

/** The events with which a server asks a question, each with the methods by which a client answers it. */
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
    // No method here, because the runtime itself checks the session of an answer to a permission request (measured with
    // 1.0.85).
    "permission.requested": [],
  }),
);

const ANSWERS = new Set<string>([...ANSWERED_BY.values()].flat());

/**
 * Whether a method answers a server's question and the runtime finds that question by its id alone. The runtime would accept
 * such an answer from a client of any session.
 */
export function isAnswer(method: string): boolean {
  return ANSWERS.has(method);
}

const MAX_REQUESTS = 1_000;
const MAX_SESSIONS = 10_000;

/**
 * The questions that servers asked in sessions that this door's clients have open. The door keeps them because only the
 * event shows which session asked. It keeps them even after a client disconnects, because the client's user may connect
 * again and answer.
 */
export class ServerQuestions {
  readonly #sessions = new Map<string, Map<string, ServerQuestion>>();

  /** Stores the event if it is a question. */
  note(sessionId: string, eventType: string, body: Buffer): void {
    if (!ANSWERED_BY.has(eventType)) return;
    const { requestId, toolName, permissionRequest } = (eventIn(body).data ?? {}) as QuestionData;
    if (typeof requestId !== "string") return;
    const { kind, toolName: permitted } = permissionRequest ?? {};
    const [tool] = [toolName, permitted].filter((name) => typeof name === "string");
    const requests = this.#of(sessionId);
    requests.set(requestId, { kind: typeof kind === "string" ? kind : undefined, tool });
    dropOldest(requests, MAX_REQUESTS);
  }

  get(sessionId: string, requestId: unknown): ServerQuestion | undefined {
    return typeof requestId === "string" ? this.#sessions.get(sessionId)?.get(requestId) : undefined;
  }

  /** The session's questions. Moves the session to the end of the map, so that `dropOldest` drops it last. */
  #of(sessionId: string): Map<string, ServerQuestion> {
    const requests = this.#sessions.get(sessionId) ?? new Map<string, ServerQuestion>();
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

interface QuestionData {
  requestId?: unknown;
  toolName?: string;
  permissionRequest?: { kind?: unknown; toolName?: string };
}
