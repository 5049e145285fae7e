import type { PermissionHandler } from "@github/copilot-sdk";
import { printableLines } from "../../../config/values/text.js";
import { colour } from "../../render/colour.js";
import { ChoiceDialog } from "../terminal/dialogs.js";
import { onOneLine, type Span, wrap } from "../terminal/layout.js";
import type { Window } from "../terminal/window.js";
import { type Described, describe, type PermissionRequest } from "./request.js";

type Decision = "once" | "session" | "no" | null;

/** A text with more rows than this is printed above the question, where the user can scroll. */
const MOST_ROWS = 8;

/** Asks the user about the tool calls of a turn, and remembers the answers that are given for a whole session. */
export class Approvals {
  readonly #window: Window;
  /** The kinds of calls that the user has allowed in each session of this chat. */
  readonly #allowed = new Map<string, Set<string>>();
  /** The answers about the present calls. The runtime asks twice about some calls (measured with 1.0.85). */
  readonly #answered = new Map<string, Decision>();
  /** Resolves when no question is on the screen. */
  #free: Promise<unknown> = Promise.resolve();

  constructor(window: Window) {
    this.#window = window;
  }

  readonly handler: PermissionHandler = async (request, { sessionId }) => {
    const decision = this.#free.then(async () => await this.#decide(request, sessionId));
    this.#free = decision;
    switch (await decision) {
      case "once":
      case "session":
        return { kind: "approve-once" };
      case "no":
        return { kind: "reject", feedback: "The user does not allow this." };
      default:
        return { kind: "user-not-available" };
    }
  };

  async #decide(request: PermissionRequest, sessionId: string): Promise<Decision> {
    const call = JSON.stringify(request);
    const described = describe(request);
    const allowed = this.#allowed.get(sessionId) ?? new Set();
    if (described.scope?.keys.every((key) => allowed.has(key)) === true) return "session";
    const known = request.toolCallId === undefined ? undefined : this.#answered.get(call);
    if (known !== undefined) return known;
    const decision = await this.#ask(described);
    this.#answered.set(call, decision);
    if (decision !== "session") return decision;
    this.#allowed.set(sessionId, new Set([...allowed, ...(described.scope?.keys ?? [])]));
    return decision;
  }

  async #ask({ question, body, notes, scope }: Described): Promise<Decision> {
    const rows = body === "" ? [] : wrap([{ text: printableLines(body) }], this.#window.columns);
    const isLong = rows.length > MOST_ROWS;
    if (isLong) this.#window.print(["", ...rows]);
    const lines: Span[] = [
      { text: onOneLine(question), style: colour.bold },
      ...rows.slice(0, MOST_ROWS).map((text) => ({ text })),
      ...(isLong ? [{ text: "… all of it is above", style: colour.dim }] : []),
      ...notes.map((note) => ({ text: onOneLine(note), style: colour.dim })),
    ];
    const choices = [
      { key: "y", label: "yes, once" },
      ...(scope === null
        ? []
        : [{ key: "a", label: `yes, and in this session do not ask again about ${onOneLine(scope.label)}` }]),
      { key: "n", label: "no" },
    ];
    const answer = await this.#window.ask(new ChoiceDialog(lines, choices));
    if (answer === null) return null;
    return answer === "y" ? "once" : answer === "a" ? "session" : "no";
  }
}
