import { isObject } from "./history-event.js";

/** `aborted`: by whoever sent it. `cut`: the server or the session went away under it. */
export type TurnOutcome = "completed" | "failed" | "aborted" | "cut";

/** Times are milliseconds since the epoch, by the clock of the server's machine. */
export interface EndedTurn {
  startedAtMs: number;
  endedAtMs: number;
  outcome: TurnOutcome;
}

export interface OpenTurn {
  startedAtMs: number;
  lastEventAtMs: number;
}

/** One call of the model, with the tools that it asked for. */
export interface Step {
  /** Whether it gave a text. Null: nothing of the answer was seen. */
  answered: boolean | null;
  wantsTools: boolean;
  /** Tools that were asked for and have not come to an end. */
  pending: Set<string>;
  /** The user refused a tool. */
  refused: boolean;
}

export interface Turn extends OpenTurn {
  /** Its prompt was seen, and so its beginning. */
  fromPrompt: boolean;
  interactionId: unknown;
  step: Step | null;
  aborted: boolean;
  failed: boolean;
  /** The model has answered, while sub-agents were at work in the background; since when. */
  answeredAtMs: number | null;
  /** What it was, unless the history goes on. */
  presumed: { outcome: TurnOutcome; endedAtMs: number } | null;
}

export function newTurn(atMs: number, interactionId: unknown, fromPrompt: boolean): Turn {
  return {
    startedAtMs: atMs,
    lastEventAtMs: atMs,
    fromPrompt,
    interactionId,
    step: null,
    aborted: false,
    failed: false,
    answeredAtMs: null,
    presumed: null,
  };
}

export function newStep(): Step {
  return { answered: null, wantsTools: false, pending: new Set(), refused: false };
}

/** What is said into a turn, by the user or by the runtime (a skill's text). */
export function belongsTo(turn: Turn, { delivery, interactionId }: Record<string, unknown>): boolean {
  if (delivery === "idle" || delivery === "queued") return false;
  return (
    delivery === "steering" || turn.step !== null || (interactionId != null && interactionId === turn.interactionId)
  );
}

export function noteMessage(step: Step, { content, toolRequests, abridged }: Record<string, unknown>): void {
  // Of a long one it is not known which of the two made it long; tools show by their start.
  step.answered = abridged === true || (typeof content === "string" && content !== "") || step.answered === true;
  for (const request of Array.isArray(toolRequests) ? toolRequests : []) {
    step.wantsTools = true;
    if (isObject(request) && typeof request.toolCallId === "string") step.pending.add(request.toolCallId);
  }
}
