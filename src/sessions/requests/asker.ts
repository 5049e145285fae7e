import type { PermissionHandler, SessionConfig, SessionEvent } from "@github/copilot-sdk";
import type { Config } from "../../config/schema.js";
import { isObject } from "../../config/values/json.js";
import type { AgentRequests, WaitingRequest } from "./agent-requests.js";
import type { Asked, AskedPermission, RequestChange, RequestOutcome, Verdict } from "./request.js";

/** The options of a turn that concern the agent's requests. */
export interface AskOptions {
  /** Called when a request is opened, and when it is closed. */
  onRequest?: ((change: RequestChange) => void) | undefined;
  /** Once this signal aborts, nobody is asked: waiting requests expire, and each new request expires at once. */
  askUntil?: AbortSignal | undefined;
}

export interface AskerOptions {
  user: string;
  /** Whether the user answers the agent's requests through {@link AgentRequests}, for example over HTTP. */
  interactive?: boolean | undefined;
}

type Handlers = Required<Pick<SessionConfig, "onPermissionRequest" | "onUserInputRequest">>;

interface Turn extends AskOptions {
  waiting: Set<WaitingRequest>;
  /** The texts of the runtime's questions, by the runtime's request ids. */
  questions: Map<string, string>;
}

/**
 * Puts the permission requests and questions of the runtime into {@link AgentRequests}, where the user answers them,
 * for example over HTTP. Each open session object has its own Asker. The runtime sends each request to all clients of a
 * session, so outside of the turns of its session object, an Asker leaves the requests to the other clients.
 */
export class Asker {
  readonly #requests: AgentRequests;
  readonly #sessionId: string;
  readonly #user: string;
  #turn: Turn | null = null;

  constructor(requests: AgentRequests, sessionId: string, user: string) {
    this.#requests = requests;
    this.#sessionId = sessionId;
    this.#user = user;
  }

  /**
   * The SDK handlers for the session's settings. Unless `session.approve` is "ask", nobody is asked for permissions.
   */
  handlersFor({ session: { approve } }: Pick<Config, "session">): Partial<Handlers> {
    const { onPermissionRequest, onUserInputRequest } = this.#handlers;
    return approve === "ask" ? { onPermissionRequest, onUserInputRequest } : { onUserInputRequest };
  }

  readonly #handlers: Handlers = {
    onPermissionRequest: async (permission) => {
      const asked = { permission: shortened(permission) as AskedPermission, question: null };
      const { outcome, reason, isKnown = false } = await this.#ask(asked);
      if (isKnown) return { kind: "no-result" };
      switch (outcome) {
        case "approved":
          return { kind: "approve-once" };
        case "denied":
          return reason === undefined ? { kind: "reject" } : { kind: "reject", feedback: reason };
        case "expired":
          return { kind: "user-not-available" };
        default:
          return { kind: "no-result" };
      }
    },
    onUserInputRequest: async ({ question, choices = [], allowFreeform = true }) => {
      const isOpen = choices.length === 0;
      const asked = { question, choices: isOpen ? null : choices, freeform: allowFreeform || isOpen };
      const { outcome, answer = "", isKnown = false } = await this.#ask({ permission: null, question: asked });
      // This client must not answer. Never settle, because the SDK would send any result or error as an answer.
      if (outcome === "cancelled" || isKnown) return await new Promise<never>(() => undefined);
      if (outcome === "answered") return { answer, wasFreeform: !choices.includes(answer) };
      return { answer: "Nobody answered. Continue without an answer.", wasFreeform: true };
    },
  };

  /** Wraps a handler so that it decides only in turns of this session object. */
  guard(handler: PermissionHandler): PermissionHandler {
    return (request, invocation) => (this.#turn === null ? { kind: "no-result" } : handler(request, invocation));
  }

  /** Begins a turn. The disposal ends it, and cancels the requests that still wait. */
  begin({ onRequest, askUntil }: AskOptions): Disposable {
    const turn: Turn = { onRequest, askUntil, waiting: new Set(), questions: new Map() };
    this.#turn = turn;
    return {
      [Symbol.dispose]: () => {
        if (this.#turn === turn) this.#turn = null;
        for (const each of turn.waiting) each.close({ outcome: "cancelled" });
      },
    };
  }

  /** Receives each event of a turn. Closes a request when an event shows that another client has answered it. */
  saw(event: SessionEvent): void {
    const questions = this.#turn?.questions;
    if (event.type === "user_input.requested") questions?.set(event.data.requestId, event.data.question);
    if (event.type === "user_input.completed") {
      const { requestId, answer } = event.data;
      const text = questions?.get(requestId);
      questions?.delete(requestId);
      const found = this.#waitingFor(({ question }) => text !== undefined && question?.question === text);
      found?.close({ outcome: answer === undefined ? "cancelled" : "answered", isKnown: true });
    }
    if (event.type === "permission.completed") {
      const { toolCallId, result } = event.data;
      const found = this.#waitingFor(
        (request) => toolCallId !== undefined && request.permission?.toolCallId === toolCallId,
      );
      found?.close({ outcome: outcomeOf(result.kind), isKnown: true });
    }
  }

  #waitingFor(isMeant: (request: WaitingRequest["request"]) => boolean): WaitingRequest | undefined {
    return [...(this.#turn?.waiting ?? [])].find(({ request }) => isMeant(request));
  }

  async #ask(asked: Asked): Promise<Verdict> {
    const turn = this.#turn;
    if (turn === null) return { outcome: "cancelled" };
    const waiting = this.#requests.open(this.#sessionId, this.#user, asked, turn.askUntil);
    turn.waiting.add(waiting);
    turn.onRequest?.({ type: "request.opened", request: waiting.request });
    const verdict = await waiting.verdict;
    turn.waiting.delete(waiting);
    turn.onRequest?.({ type: "request.closed", request: { ...waiting.request, outcome: verdict.outcome } });
    return verdict;
  }
}

/** The longest text in a permission, in characters. A permission to write contains the whole change. */
const LONGEST_TEXT = 100_000;

/** Truncates long texts, and appends to each how many characters are missing. */
function shortened(value: unknown): unknown {
  if (typeof value === "string") {
    const more = value.length - LONGEST_TEXT;
    return more <= 0 ? value : `${value.slice(0, LONGEST_TEXT)}… (${more} more characters)`;
  }
  if (Array.isArray(value)) return value.map(shortened);
  if (!isObject(value)) return value;
  return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, shortened(each)]));
}

/** @param kind the kind of the result that the runtime reports (1.0.85): `approved…`, `denied…` or `cancelled` */
function outcomeOf(kind: string): RequestOutcome {
  if (kind.startsWith("approved")) return "approved";
  return kind === "cancelled" ? "cancelled" : "denied";
}
