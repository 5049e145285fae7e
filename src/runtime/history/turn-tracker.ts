import type { TurnOutcome } from "../../base/session.js";
import { asSentence, isObject } from "../../base/values/text.js";
import type { HistoryEvent } from "./line.js";

/** A turn that seems to be over counts as over after this many milliseconds without another event. */
const QUIET_MS = 2_000;

/**
 * Follows the turns of one session through its history, `events.jsonl`.
 *
 * The runtime's signal for the end of a turn, `session.idle`, is not in the history. `assistant.turn_end` ends only a
 * single call of the model. The rules below were observed with the runtime of SDK 1.0.14 (see
 * `test/faults/turn-watch.test.ts`). A turn begins with a `user.message` of the main agent (no `agentId`). A step of
 * the turn is one `assistant.turn_start … assistant.message … assistant.turn_end`.
 *
 * - Plain turn: it has one step, whose message has text and asks for no tools.
 * - Tools: each call of the model is a step. Every tool that it asked for has its `tool.execution_complete` before
 *   the step
 * ends. The next step begins within a millisecond. A tool that fails or that rules forbid does not end the turn. A tool
 *   that the user refuses (error code `rejected`) ends the turn without a further event, unless the user gave a reason.
 * - Failed turn: the step ends without a message or with an empty message, followed by `session.error`. Retries leave
 *   no trace.
 * - Aborted turn: `abort` comes before or after the end of the step. Tools that were running have no
 *   `tool.execution_complete`.
 * - Turn cut by SIGKILL or SIGTERM: nothing more is written.
 * - Turn cut by `sessions.close`, by `runtime.shutdown`, or because its clients left: `session.shutdown` is written,
 *   but no end of the turn. `session.resume` is written late, with the next turn. If a client joined a running turn,
 *   `session.resume` has `sessionWasActive: true`.
 * - Queued prompts (`delivery: queued`) are separate turns. Each is written when its turn begins.
 * - Steering prompts (`delivery: steering`) belong to the turn that is in flight.
 * - Sub-agents write all these kinds of events with their `agentId`. Background sub-agents outlive the step, and the
 *   turn
 *   continues. When they are done, a `system.notification` and a step without a prompt follow.
 *
 * The history contains neither the pieces of streamed text nor shell commands in the background. A turn writes nothing
 * while it waits for a call of the model or for a permission.
 */
export class TurnTracker {
  #turn: Turn | null = null;
  #last: EndedTurn | null = null;
  #anchored = false;
  readonly #agents = new Set<string>();

  /**
   * Makes a tracker for a history that is read from the middle of a turn. @param atMs a time at which that turn was in
   * flight
   */
  static within(atMs: number): TurnTracker {
    const tracker = new TurnTracker();
    tracker.#turn = newTurn(atMs, undefined, false);
    return tracker;
  }

  get open(): OpenTurn | null {
    return this.#turn;
  }

  /** Whether the turn in flight seems to be over (see {@link endIfQuiet}). */
  get isDoubtful(): boolean {
    return this.#turn?.presumed != null;
  }

  /** Whether we have seen enough to know if a turn is in flight and, if so, when it began. */
  get isCertain(): boolean {
    return this.#anchored && (this.#turn === null || this.#turn.fromPrompt);
  }

  /** The last turn, if the session was unloaded during it and neither a load nor a turn followed. Otherwise null. */
  get lastCut(): EndedTurn | null {
    return this.#last?.outcome === "cut" ? this.#last : null;
  }

  /** Returns the turn that this event ended, or null. */
  push(event: HistoryEvent): EndedTurn | null {
    const { type, data, atMs } = event;
    const turn = this.#turn;
    const isLoad = (type === "session.start" || type === "session.resume") && data.sessionWasActive !== true;
    if (isLoad) return this.#load(turn?.lastEventAtMs ?? atMs); // an open turn ended with the previous load
    if (turn !== null) turn.lastEventAtMs = Math.max(turn.lastEventAtMs, atMs);
    if (event.agentId !== null) return this.#pushOfAgent(type, event.agentId, atMs);
    switch (type) {
      case "user.message":
        return this.#prompt(data, atMs);
      case "assistant.turn_start":
        return this.#startStep(data, atMs);
      case "assistant.message":
        if (turn?.step) noteMessage(turn.step, data);
        return null;
      case "tool.execution_start":
        if (turn?.step) turn.step.wantsTools = true;
        if (turn?.step && typeof data.toolCallId === "string") addPending(turn.step.pending, data.toolCallId);
        return null;
      case "tool.execution_complete":
        if (typeof data.toolCallId === "string") turn?.step?.pending.delete(data.toolCallId);
        if (turn?.step && isObject(data.error) && data.error.code === "rejected") turn.step.refused = true;
        return null;
      case "assistant.turn_end":
        return turn === null ? null : this.#endStep(turn, atMs);
      case "session.error":
        return turn === null ? null : this.#fail(turn, atMs);
      case "abort":
        return turn === null ? null : this.#abort(turn, atMs);
      case "session.shutdown":
        return this.close(atMs);
      default:
        return null;
    }
  }

  /**
   * Ends a turn that seems to be over, after two seconds without events. Call this after reading the history to its
   * end. @returns the turn that ended, or null
   */
  endIfQuiet(nowMs: number): EndedTurn | null {
    const turn = this.#turn;
    if (turn === null || turn.presumed === null || nowMs - turn.lastEventAtMs < QUIET_MS) return null;
    return this.#end(turn.presumed.outcome, turn.presumed.endedAtMs);
  }

  /** Call this when the session has been unloaded. @returns the turn that was in flight until then, or null */
  close(atMs: number): EndedTurn | null {
    this.#agents.clear();
    const turn = this.#turn;
    if (turn === null) return null;
    return this.#end(turn.presumed?.outcome ?? "cut", turn.presumed?.endedAtMs ?? atMs);
  }

  #load(atMs: number): EndedTurn | null {
    const ended = this.close(atMs);
    this.#anchored = true;
    this.#last = null;
    return ended;
  }

  #prompt(data: Record<string, unknown>, atMs: number): EndedTurn | null {
    const turn = this.#turn;
    if (turn !== null && belongsTo(turn, data)) return null;
    // If the model has answered the last prompt and only sub-agents still work, the turn of that prompt counts as
    // completed.
    const ended = turn?.answeredAtMs == null ? this.close(atMs) : this.#end("completed", turn.answeredAtMs);
    this.#agents.clear();
    this.#anchored = true;
    this.#last = null;
    this.#turn = newTurn(atMs, data.interactionId, true);
    return ended;
  }

  #startStep(data: Record<string, unknown>, atMs: number): null {
    if (!this.#anchored && this.#turn === null) this.#anchored = true;
    this.#last = null;
    this.#turn ??= newTurn(atMs, data.interactionId, false);
    this.#turn.presumed = null;
    this.#turn.answeredAtMs = null;
    this.#turn.failed = false;
    this.#turn.step = { answered: null, wantsTools: false, pending: new Set(), refused: false };
    return null;
  }

  #endStep(turn: Turn, atMs: number): EndedTurn | null {
    const { step } = turn;
    turn.step = null;
    if (turn.aborted) return this.#end("aborted", atMs);
    if (step === null) {
      turn.presumed = { outcome: "completed", endedAtMs: atMs }; // we have not read the beginning of the step
    } else if (step.wantsTools) {
      if (step.pending.size > 0 || step.refused) turn.presumed = { outcome: "aborted", endedAtMs: atMs };
    } else if (step.answered === true) {
      if (this.#agents.size === 0) return this.#end("completed", atMs);
      turn.answeredAtMs = atMs;
    } else if (turn.failed) {
      return this.#end("failed", atMs);
    } else {
      turn.presumed = { outcome: "failed", endedAtMs: atMs };
    }
    return null;
  }

  #fail(turn: Turn, atMs: number): EndedTurn | null {
    turn.failed = true;
    return turn.step === null && turn.answeredAtMs === null ? this.#end("failed", atMs) : null;
  }

  #abort(turn: Turn, atMs: number): EndedTurn | null {
    turn.aborted = true;
    return turn.step === null ? this.#end("aborted", turn.presumed?.endedAtMs ?? atMs) : null;
  }

  #pushOfAgent(type: string, agentId: string, atMs: number): null {
    if (type === "subagent.started") addPending(this.#agents, agentId);
    if (type !== "subagent.completed" && type !== "subagent.failed") return null;
    this.#agents.delete(agentId);
    const turn = this.#turn;
    if (turn !== null && turn.answeredAtMs !== null && this.#agents.size === 0) {
      turn.presumed = { outcome: "completed", endedAtMs: atMs };
    }
    return null;
  }

  #end(outcome: TurnOutcome, atMs: number): EndedTurn | null {
    const turn = this.#turn;
    this.#turn = null;
    if (turn === null) return null;
    if (outcome === "aborted") this.#agents.clear();
    this.#last = { startedAtMs: turn.startedAtMs, endedAtMs: Math.max(turn.startedAtMs, atMs), outcome };
    return this.#last;
  }
}

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

/**
 * The most tools and sub-agents of a turn whose ends we wait for. Only an agent that writes the history itself exceeds
 * it.
 */
export const MOST_PENDING = 10_000;

function addPending(ids: Set<string>, id: string): void {
  if (ids.size < MOST_PENDING) ids.add(id);
}

interface Step {
  /** Whether the model's answer has text. Null if we saw nothing of the answer. */
  answered: boolean | null;
  wantsTools: boolean;
  /** Tools that the model asked for and that have not ended. */
  pending: Set<string>;
  refused: boolean;
}

interface Turn extends OpenTurn {
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

function newTurn(atMs: number, interactionId: unknown, fromPrompt: boolean): Turn {
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

/**
 * Whether a `user.message` belongs to this turn. If not, it is the prompt of a new turn. The message comes from the
 * user, or from the runtime (a skill's text).
 */
function belongsTo(turn: Turn, { delivery, interactionId }: Record<string, unknown>): boolean {
  if (delivery === "idle" || delivery === "queued") return false;
  return (
    delivery === "steering" || turn.step !== null || (interactionId != null && interactionId === turn.interactionId)
  );
}

function noteMessage(step: Step, { content, toolRequests, abridged }: Record<string, unknown>): void {
  // We do not parse a long message, so we do not know whether it has text or asks for tools. Assume that it has text.
  // If it asks for tools, the events of those tools follow.
  step.answered = abridged === true || (typeof content === "string" && content !== "") || step.answered === true;
  for (const request of Array.isArray(toolRequests) ? toolRequests : []) {
    step.wantsTools = true;
    if (isObject(request) && typeof request.toolCallId === "string") addPending(step.pending, request.toolCallId);
  }
}

/**
 * For these statuses of a model service, the runtime (1.0.85) reports a text of its own. So the model gateway answers
 * with statuses for which the runtime reports the text in the answer.
 */
const SHOWN: Readonly<Record<number, number>> = { 401: 424, 403: 422, 404: 422 };

export function shownStatus(status: number): number {
  return SHOWN[status] ?? status;
}

/** Whether a model service or the model gateway refused the credential, by the status in a `session.error`. */
export function isRefusedCredential(status: unknown): boolean {
  return status === 401 || status === SHOWN[401];
}

const RETRIED = /^Failed to get response from the AI model; retried (\d+) times? \([^)]*\) Last error: /;
/** The status that the runtime puts before a message of the model gateway, which contains the service's own status. */
const STATUS = /^(?:42[24]|\d{3}(?= https?:\/\/)) /;
const VARIABLES = "COPILOT_PROVIDER_API_KEY, COPILOT_PROVIDER_API_KEY_COMMAND, or COPILOT_PROVIDER_BEARER_TOKEN";

/** Returns the reason in the message of a `session.error`, with settings of the fleet instead of the runtime's. */
export function reasonOf(message: string): string {
  const retries = RETRIED.exec(message)?.[1];
  const text = message
    .replace(RETRIED, "")
    .replace(STATUS, "")
    .replace(VARIABLES, "provider.apiKey")
    .replace(/\s*\n\s*/g, " ");
  return retries === undefined ? text : `${asSentence(text)} The server gave up after ${Number(retries) + 1} tries.`;
}

/** The same event with {@link reasonOf} as its message if it is a `session.error`. */
export function withReason<Event extends { type: string; data: object }>(event: Event): Event {
  if (event.type !== "session.error" || !("message" in event.data)) return event;
  return { ...event, data: { ...event.data, message: reasonOf(String(event.data.message)) } };
}

/**
 * Whether the same prompt may succeed soon, because the runtime itself has tried again. Takes both forms of a message.
 */
export function mayPass(message: string): boolean {
  return RETRIED.test(message) || /The server gave up after \d+ tries\.$|^Could not connect to local/.test(message);
}
