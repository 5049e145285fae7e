import { isObject } from "../../config/values/json.js";
import type { TurnOutcome } from "../../model/session.js";

/** Times are Unix times in milliseconds, by the clock of the server's machine. */
export interface EndedTurn {
  startedAtMs: number;
  endedAtMs: number;
  outcome: TurnOutcome;
}

export interface OpenTurn {
  startedAtMs: number;
  lastEventAtMs: number;
}

/** The most tools and sub-agents of a turn whose ends we wait for. Only an agent that writes the history itself exceeds it. */
export const MOST_PENDING = 10_000;

export function addPending(ids: Set<string>, id: string): void {
  if (ids.size < MOST_PENDING) ids.add(id);
}

export interface Step {
  /** Whether the model's answer has text. Null if we saw nothing of the answer. */
  answered: boolean | null;
  wantsTools: boolean;
  /** Tools that the model asked for and that have not ended. */
  pending: Set<string>;
  refused: boolean;
}

export interface Turn extends OpenTurn {
  /** Whether we saw the turn's prompt, and so the turn's beginning. */
  fromPrompt: boolean;
  interactionId: unknown;
  step: Step | null;
  aborted: boolean;
  failed: boolean;
  /** The time when the model answered, if sub-agents were then still working in the background. Otherwise null. */
  answeredAtMs: number | null;
  /**
   * How and when the turn ended, if no more events of this turn follow. Null while the turn does not seem to be over.
   */
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

/**
 * Whether a `user.message` belongs to this turn. If not, it is the prompt of a new turn. The message comes from the
 * user, or from the runtime (a skill's text).
 */
export function belongsTo(turn: Turn, { delivery, interactionId }: Record<string, unknown>): boolean {
  if (delivery === "idle" || delivery === "queued") return false;
  return (
    delivery === "steering" || turn.step !== null || (interactionId != null && interactionId === turn.interactionId)
  );
}

export function noteMessage(step: Step, { content, toolRequests, abridged }: Record<string, unknown>): void {
  // We do not parse a long message, so we do not know whether it has text or asks for tools. Assume that it has text.
  // If it asks for tools, the events of those tools follow.
  step.answered = abridged === true || (typeof content === "string" && content !== "") || step.answered === true;
  for (const request of Array.isArray(toolRequests) ? toolRequests : []) {
    step.wantsTools = true;
    if (isObject(request) && typeof request.toolCallId === "string") addPending(step.pending, request.toolCallId);
  }
}
