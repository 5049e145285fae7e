import type { SessionEvent } from "@github/copilot-sdk";
import { FleetError } from "../../../errors.js";

/** A turn whose connection may end before the turn does. The rest of it then comes from the session's history. */
export class FollowedTurn {
  readonly #prompt: string;
  readonly #known: string | undefined;
  readonly #onEvent: (event: SessionEvent) => void;
  readonly #seen = new Set<string>();
  /** The id of the event with the prompt. */
  #own: string | undefined;
  #lastId: string | undefined;

  /** @param known the id of the last event before the turn that is known; undefined if no event is known */
  constructor(prompt: string, known: string | undefined, onEvent: (event: SessionEvent) => void) {
    this.#prompt = prompt;
    this.#known = known;
    this.#onEvent = onEvent;
  }

  /** The id of the last event of the turn that is in the history. */
  get lastId(): string | undefined {
    return this.#lastId;
  }

  push(event: SessionEvent): void {
    if (event.type === "user.message") this.#own ??= event.id;
    if (event.ephemeral !== true) {
      this.#seen.add(event.id);
      this.#lastId = event.id;
    }
    this.#onEvent(event);
  }

  /**
   * Reports the events of the turn that are only in the history.
   *
   * @throws FleetError `FLEET_SERVER_LOST` when the history does not have the prompt, or not the end of the turn.
   */
  catchUp(history: readonly SessionEvent[]): void {
    const after = history.findIndex(({ id }) => id === this.#known) + 1;
    const at = history.findIndex((event, index) => index >= after && this.#isOwn(event));
    if (at === -1) {
      throw lost(
        "The connection ended before the prompt reached the session. The history does not contain the prompt.",
      );
    }
    const next = history.findIndex(({ type }, index) => index > at && type === "user.message");
    const turn = history.slice(at, next === -1 ? undefined : next);
    for (const event of turn) if (!this.#seen.has(event.id)) this.push(event);
    if (!turn.some(isAnswer)) throw lost("The connection ended during the turn, and the turn ended without an answer.");
  }

  #isOwn(event: SessionEvent): boolean {
    if (event.type !== "user.message") return false;
    return this.#own === undefined ? event.data.content === this.#prompt : event.id === this.#own;
  }
}

/** Whether the event is the last message of a turn. Earlier messages call tools. */
function isAnswer(event: SessionEvent): boolean {
  return event.type === "assistant.message" && (event.data.toolRequests ?? []).length === 0;
}

function lost(message: string): FleetError {
  return new FleetError("FLEET_SERVER_LOST", message, { suggestions: ["Send the prompt again."] });
}
