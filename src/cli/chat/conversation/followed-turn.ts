import type { SessionEvent } from "@github/copilot-sdk";
import { FleetError } from "../../../errors.js";
import type { HistoryEvent } from "../../../runtime/history/event.js";
import { reasonOf } from "../../../runtime/history/turn-failure.js";
import { TurnTracker } from "../../../runtime/history/turn-tracker.js";

/** Follows a turn that may outlive the connection. The session's history supplies the events that the chat missed. */
export class FollowedTurn {
  readonly #prompt: string;
  readonly #known: string | undefined;
  readonly #onEvent: (event: SessionEvent) => void;
  readonly #seen = new Set<string>();
  /** The id of the event with the prompt; undefined until it arrives. */
  #own: string | undefined;
  #lastId: string | undefined;

  /** @param known the id of the last event that the chat received before the turn; undefined if it received none */
  constructor(prompt: string, known: string | undefined, onEvent: (event: SessionEvent) => void) {
    this.#prompt = prompt;
    this.#known = known;
    this.#onEvent = onEvent;
  }

  /** The id of the turn's last event so far. Ephemeral events do not count, because the history omits them. */
  get lastId(): string | undefined {
    return this.#lastId;
  }

  push(event: SessionEvent): void {
    if (event.type === "user.message" && isOfMainAgent(event)) this.#own ??= event.id;
    if (event.ephemeral !== true) {
      this.#seen.add(event.id);
      this.#lastId = event.id;
    }
    this.#onEvent(event);
  }

  /**
   * Reports the events of the turn that are in the history but have not been reported.
   *
   * @throws FleetError `FLEET_TURN_FAILED` if the history has an error instead of an answer; `FLEET_SERVER_LOST` if it
   * has neither, or does not contain the prompt.
   */
  catchUp(history: readonly SessionEvent[]): void {
    const at = this.#placeIn(history);
    if (at === -1) {
      throw lost(
        "The connection ended before the prompt reached the session. The history does not contain the prompt.",
      );
    }
    const turn = turnAt(history, at);
    for (const event of turn) if (!this.#seen.has(event.id)) this.push(event);
    if (turn.some(isAnswer)) return;
    const failure = turn.findLast((event) => event.type === "session.error" && isOfMainAgent(event));
    if (failure?.type === "session.error") {
      throw new FleetError("FLEET_TURN_FAILED", `The turn failed: ${reasonOf(failure.data.message)}`);
    }
    throw lost("The connection ended during the turn, and the turn ended without an answer.");
  }

  /** Whether the history has the prompt. */
  isIn(history: readonly SessionEvent[]): boolean {
    return this.#placeIn(history) !== -1;
  }

  #placeIn(history: readonly SessionEvent[]): number {
    const after = history.findIndex(({ id }) => id === this.#known) + 1;
    return history.findIndex((event, index) => index >= after && this.#isOwn(event));
  }

  #isOwn(event: SessionEvent): boolean {
    if (event.type !== "user.message" || !isOfMainAgent(event)) return false;
    return this.#own === undefined ? event.data.content === this.#prompt : event.id === this.#own;
  }
}

/** The events of the turn whose prompt is at the index `at` of the history. */
function turnAt(history: readonly SessionEvent[], at: number): SessionEvent[] {
  const tracker = new TurnTracker();
  const turn: SessionEvent[] = [];
  for (const event of history.slice(at)) {
    const ended = tracker.push(historyEvent(event));
    const isNextPrompt = ended !== null && event.type === "user.message";
    if (!isNextPrompt) turn.push(event);
    if (ended !== null) break;
  }
  return turn;
}

/** Whether the event is the main agent's answer in a turn: its only message that calls no tools. */
function isAnswer(event: SessionEvent): boolean {
  return event.type === "assistant.message" && isOfMainAgent(event) && (event.data.toolRequests ?? []).length === 0;
}

function isOfMainAgent(event: SessionEvent): boolean {
  return !("agentId" in event) || event.agentId === undefined;
}

/** Converts the event to the form in which the fleet reads events from a history on disk. */
function historyEvent(event: SessionEvent): HistoryEvent {
  const agentId = "agentId" in event && event.agentId !== undefined ? event.agentId : null;
  return { type: event.type, agentId, data: { ...event.data }, atMs: Date.parse(event.timestamp) };
}

function lost(message: string): FleetError {
  return new FleetError("FLEET_SERVER_LOST", message, { suggestions: ["Send the prompt again."] });
}
