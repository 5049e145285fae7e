import type { PermissionHandler } from "@github/copilot-sdk";
import { printableLines } from "../../../config/values/text.js";
import { colour } from "../../render/colour.js";
import { shorten } from "../../render/table.js";
import { onOneLine, type Span } from "../terminal/layout.js";
import type { OwnTurn } from "../terminal/own-turn.js";
import type { Window } from "../terminal/window.js";
import { type Described, describe, type PermissionRequest } from "./request.js";

type Decision = "once" | "session" | "no" | null;

/** A permission request, and the turn in which it arrived. */
interface Asked {
  request: PermissionRequest;
  sessionId: string;
  turn: OwnTurn;
  /** How many tool calls with the same id had ended when the request arrived. */
  endedCalls: number;
}

/** The longest reason or warning in a question, in columns. A long text must not push the command off the screen. */
const LONGEST_NOTE = 160;

/** Asks the user about the tool calls of a turn, and remembers what the user has allowed for the rest of a session. */
export class Approvals {
  readonly #window: Pick<Window, "ask" | "turn">;
  /** The keys (of {@link Described.scope}) that the user has allowed, by session id. */
  readonly #allowed = new Map<string, Set<string>>();
  /**
   * The user's decisions about tool calls of the present turn. A second request about the same call gets the same
   * decision: the runtime asks twice about some calls, both times before the call ends (measured with 1.0.85).
   */
  readonly #answered = new Map<string, { decision: Decision; endedCalls: number }>();
  #turn: OwnTurn | null = null;
  /** Resolves when all earlier requests are answered. The next request waits for it: one answer may cover both. */
  #free: Promise<Decision> = Promise.resolve(null);

  constructor(window: Pick<Window, "ask" | "turn">) {
    this.#window = window;
  }

  readonly handler: PermissionHandler = async (request, { sessionId }) => {
    const { turn } = this.#window;
    const endedCalls = turn?.endedCalls(request.toolCallId ?? "") ?? 0;
    // All clients of the session get the request. Let the client that runs the turn answer.
    if (turn === null || !(await turn.asks())) return { kind: "no-result" };
    const asked = { request, sessionId, turn, endedCalls };
    // If asking fails, treat this request as unanswered, so that later requests still reach the user.
    this.#free = this.#free.then(async () => await this.#decide(asked)).catch(() => null);
    switch (await this.#free) {
      case "once":
      case "session":
        return { kind: "approve-once" };
      case "no":
        return { kind: "reject", feedback: "The user does not allow this." };
      default:
        return { kind: "user-not-available" };
    }
  };

  async #decide({ request, sessionId, turn, endedCalls }: Asked): Promise<Decision> {
    if (turn !== this.#window.turn) return null;
    if (turn !== this.#turn) this.#answered.clear();
    this.#turn = turn;
    const described = describe(request);
    const allowed = this.#allowed.get(sessionId) ?? new Set();
    if (described.scope?.keys.every((key) => allowed.has(key)) === true) return "session";
    const call = JSON.stringify([sessionId, request]);
    const known = this.#answered.get(call);
    this.#answered.delete(call);
    if (known?.endedCalls === endedCalls) return known.decision;
    const decision = await this.#ask(described);
    if (request.toolCallId !== undefined) this.#answered.set(call, { decision, endedCalls });
    if (decision !== "session") return decision;
    this.#allowed.set(sessionId, new Set([...allowed, ...(described.scope?.keys ?? [])]));
    return decision;
  }

  async #ask({ question, body, notes, scope }: Described): Promise<Decision> {
    const lines: Span[] = [
      { text: onOneLine(question), style: colour.bold },
      ...(body === "" ? [] : [{ text: printableLines(body) }]),
      ...notes.map((note) => ({ text: shorten(onOneLine(note), LONGEST_NOTE, "end"), style: colour.dim })),
    ];
    const choices = [
      { key: "y", label: "yes, once" },
      ...(scope === null
        ? []
        : [{ key: "a", label: `yes, and in this session do not ask again about ${onOneLine(scope.label)}` }]),
      { key: "n", label: "no" },
    ];
    const answer = await this.#window.ask({ lines, choices });
    if (answer === null) return null;
    return answer === "y" ? "once" : answer === "a" ? "session" : "no";
  }
}
