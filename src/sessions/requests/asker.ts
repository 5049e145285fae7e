import type { PermissionHandler, SessionConfig, SessionEvent } from "@github/copilot-sdk";
import type { Config } from "../../config/schema.js";
import { isObject } from "../../config/values/json.js";
import type { AgentRequests, WaitingRequest } from "./agent-requests.js";
import type { Asked, AskedPermission, RequestChange, RequestOutcome, Verdict } from "./request.js";

/** The options of a turn about the requests of its agent. */
export interface AskOptions {
  /** Called when a request is opened, and when it is closed. */
  onRequest?: ((change: RequestChange) => void) | undefined;
  /** From its abort on, nobody is asked: the requests that wait expire, and so does each new one. */
  askUntil?: AbortSignal | undefined;
}

export interface AskerOptions {
  user: string;
  /** Whether the user answers the agent's requests somewhere else. */
  interactive?: boolean | undefined;
}

type Handlers = Required<Pick<SessionConfig, "onPermissionRequest" | "onUserInputRequest">>;

interface Turn extends AskOptions {
  waiting: Set<WaitingRequest>;
  /** The texts of the questions that the runtime has asked, by its own ids. */
  questions: Map<string, string>;
}

/**
 * Opens the requests of the agent for the turns of one open session, so that the user answers them somewhere else. All clients of
 * a session get each request of the runtime, so outside of its own turns it leaves them to the others.
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

  /** The handlers for the settings of the session. Without `session.approve` "ask", nobody is asked for permissions. */
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
      // The SDK sends any result, and any error, as the answer, but the client that runs the turn has to answer.
      if (outcome === "cancelled" || isKnown) return await new Promise<never>(() => undefined);
      if (outcome === "answered") return { answer, wasFreeform: !choices.includes(answer) };
      return { answer: "Nobody answered. Continue without an answer.", wasFreeform: true };
    },
  };

  /** Applies a handler only in the turns of this session object. */
  guard(handler: PermissionHandler): PermissionHandler {
    return (request, invocation) => (this.#turn === null ? { kind: "no-result" } : handler(request, invocation));
  }

  /** Begins a turn. At its end, the requests that still wait are cancelled. */
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

  /** Closes a request that another client of the user has answered. */
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

/** The longest text in a permission, in characters. A permission to write has the whole change. */
const LONGEST_TEXT = 100_000;

/** Cuts long texts, and says so in them. */
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
