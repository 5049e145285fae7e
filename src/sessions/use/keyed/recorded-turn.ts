import type { SessionEvent } from "@github/copilot-sdk";
import type { FleetError } from "../../../errors.js";
import type { TurnOutcome } from "../../../model/session.js";
import type { TurnReply } from "../../../runtime/client/turn.js";
import { TurnTracker } from "../../../runtime/history/turn-tracker.js";
import { historyLacksTurn, recordedFailure, turnWasCut } from "../../problems.js";

/** Finds one turn in the recorded events of its session, with its reply and its outcome. */
export class RecordedTurn {
  readonly #sessionId: string;
  readonly #messageId: string;
  readonly #tracker = new TurnTracker();
  readonly #reply: TurnReply = { text: "", event: undefined, outcome: "completed" };
  #hasBegun = false;
  #outcome: TurnOutcome | null = null;
  #failure = "";

  /** @param messageId the id of the prompt */
  constructor(sessionId: string, messageId: string) {
    this.#sessionId = sessionId;
    this.#messageId = messageId;
  }

  get isOver(): boolean {
    return this.#outcome !== null;
  }

  /** Receives the session's events one by one, in their order. @returns whether the event belongs to the turn */
  push(event: SessionEvent): boolean {
    if (this.isOver) return false;
    const { type, data } = event;
    const agentId = "agentId" in event ? (event.agentId ?? null) : null;
    if (!this.#hasBegun) {
      if (type !== "user.message" || data.messageId !== this.#messageId) return false;
      this.#hasBegun = true;
    }
    const atMs = Date.parse(event.timestamp);
    const ended = this.#tracker.push({ type, agentId, atMs, data: data as Record<string, unknown> });
    // The event that begins the next turn, or loads the session again, shows that this turn has ended.
    const isNext = ended !== null && (type === "user.message" || type === "session.start" || type === "session.resume");
    this.#outcome = ended?.outcome ?? null;
    if (isNext) return false;
    if (type === "assistant.message" && agentId === null && data.content !== "") {
      this.#reply.text = data.content;
      this.#reply.event = event;
    }
    if (type === "session.error") this.#failure = data.message;
    return true;
  }

  /**
   * Returns the reply. Call it after {@link push} has received all events of the session, and while nothing is at work
   * in the session. The reply of an aborted turn is the text that the model had written before the abort.
   *
   * @throws FleetError `FLEET_TURN_FAILED`; `FLEET_SERVER_LOST` when the turn was cut; `FLEET_SESSION_LOST` when the history does not have the turn.
   */
  end(): TurnReply {
    const outcome = this.#outcome ?? this.#tracker.close(Date.now())?.outcome ?? null;
    const error = this.#errorOf(outcome);
    if (error !== null) throw error;
    if (outcome === "aborted") this.#reply.outcome = outcome;
    return this.#reply;
  }

  #errorOf(outcome: TurnOutcome | null): FleetError | null {
    if (outcome === null) return historyLacksTurn(this.#sessionId);
    if (outcome === "failed") return recordedFailure(this.#sessionId, this.#failure);
    return outcome === "cut" ? turnWasCut(this.#sessionId) : null;
  }
}
