import { type HistoryEvent, isObject } from "./history-event.js";
import {
  belongsTo,
  type EndedTurn,
  newStep,
  newTurn,
  noteMessage,
  type OpenTurn,
  type Turn,
  type TurnOutcome,
} from "./turn-state.js";

/** After this long without another event, in milliseconds, a turn that seemed to be over is over. */
const SETTLE_MS = 2_000;

/**
 * Follows the turns of one session through its history, `events.jsonl`.
 *
 * The runtime's own mark for the end of a turn, `session.idle`, is not in that file, and `assistant.turn_end` closes a
 * single call of the model. Seen with the runtime of SDK 1.0.14 (`test/serve/turn-watch.test.ts` drives it); each event has
 * its time, a turn begins with a `user.message` of the main agent (no `agentId`), and a step of it is one
 * `assistant.turn_start … assistant.message … assistant.turn_end`:
 *
 * - Plain: one step, whose message has a text and asks for no tools.
 * - Tools: a step each time; every tool asked for has its `tool.execution_complete` before the step's end. The next step
 *   begins within a millisecond. A tool that failed, or was forbidden by rules, is no end. One that the user refused
 *   (error code `rejected`) ends the turn without a mark of its own, unless a reason was given.
 * - Failed: the step ends without a message, or with an empty one; `session.error` comes after it. Retries leave no trace.
 * - Aborted: `abort` stands before or after the step's end, and tools that ran have no `tool.execution_complete`.
 * - Cut by SIGKILL or SIGTERM: nothing more. Cut since its clients left, by `sessions.close` or `runtime.shutdown`:
 *   `session.shutdown`, and no end. `session.resume` is written late, with the next turn; one of a client that joins a
 *   turn says `sessionWasActive`.
 * - Queued prompts are turns of their own (`delivery: queued`, written when their turn begins); a prompt that steers
 *   (`delivery: steering`) belongs to the turn that it is in.
 * - Sub-agents have events of all these kinds with their `agentId`. Those in the background outlive the step: the turn goes
 *   on, and when they are done, `system.notification` and a step without a prompt follow.
 *
 * What is in no file: text as it streams, and shell commands in the background. A turn that waits for one call of the
 * model, or for a permission, writes nothing.
 */
export class TurnTracker {
  #turn: Turn | null = null;
  #last: EndedTurn | null = null;
  #anchored = false;
  readonly #agents = new Set<string>();

  /** For a history that is read from somewhere in a turn. @param atMs when that turn is known to have been on. */
  static within(atMs: number): TurnTracker {
    const tracker = new TurnTracker();
    tracker.#turn = newTurn(atMs, undefined, false);
    return tracker;
  }

  /** The turn in flight. */
  get open(): OpenTurn | null {
    return this.#turn;
  }

  /** Whether all is said that could end the turn in flight; what is missing is silence (see {@link settle}). */
  get isDoubtful(): boolean {
    return this.#turn?.presumed != null;
  }

  /** Whether it saw enough to tell if there is a turn in flight, and if so, when that began. */
  get isCertain(): boolean {
    return this.#anchored && (this.#turn === null || this.#turn.fromPrompt);
  }

  /** The last turn, if it ended with the session's leaving the server's memory, and nothing came after it. */
  get lastCut(): EndedTurn | null {
    return this.#last?.outcome === "cut" ? this.#last : null;
  }

  /** @returns the turn that this event ended. */
  push(event: HistoryEvent): EndedTurn | null {
    const { type, data, atMs } = event;
    const turn = this.#turn;
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
        if (typeof data.toolCallId === "string") turn?.step?.pending.add(data.toolCallId);
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
      case "session.start":
      case "session.resume":
        return data.sessionWasActive === true ? null : this.#load(atMs);
      default:
        return null;
    }
  }

  /** Ends a turn that only lacked silence. For a history that was read to its end. @returns that turn. */
  settle(nowMs: number): EndedTurn | null {
    const turn = this.#turn;
    if (turn === null || turn.presumed === null || nowMs - turn.lastEventAtMs < SETTLE_MS) return null;
    return this.#end(turn.presumed.outcome, turn.presumed.endedAtMs);
  }

  /** The session is not loaded any more. @returns the turn that this ended, cut if nothing else was said of it. */
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
    // The next one of the user's, while sub-agents are at work: the answer to the last was there.
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
    this.#turn.step = newStep();
    return null;
  }

  #endStep(turn: Turn, atMs: number): EndedTurn | null {
    const { step } = turn;
    turn.step = null;
    if (turn.aborted) return this.#end("aborted", atMs);
    if (step === null) {
      turn.presumed = { outcome: "completed", endedAtMs: atMs }; // its beginning was not read
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
    if (type === "subagent.started") this.#agents.add(agentId);
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
