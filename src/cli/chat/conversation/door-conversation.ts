import type { CopilotSession, ResumeSessionConfig, SessionEvent } from "@github/copilot-sdk";
import { FleetError, isFleetError } from "../../../errors.js";
import { errorOfDoor } from "../../../peers/calls/control-link.js";
import { runTurn } from "../../../runtime/client/turn.js";
import { abortable, deadline, pause } from "../../../runtime/clock.js";
import { Transcriber, type TranscriptEntry } from "../../../runtime/history/transcript.js";
import { type Conversation, modelOf, modelsOf, type PromptOptions } from "./conversation.js";
import { type Attached, answered, type DoorLink } from "./door-link.js";
import { FollowedTurn } from "./followed-turn.js";

const GOODBYE_MS = 2_000;
/** How long to wait before asking again whether a turn has ended, in milliseconds. */
const RETRY_MS = 500;

export class DoorConversation implements Conversation {
  readonly #door: DoorLink;
  #settings: ResumeSessionConfig;
  #attached: Attached;
  #isLost = false;
  /** The id of the last recorded event that this chat has received; undefined if it has received none. */
  #lastKnown: string | undefined;

  /** @param settings the settings for opening the session again */
  constructor(door: DoorLink, settings: ResumeSessionConfig, attached: Attached) {
    this.#door = door;
    this.#settings = settings;
    this.#attached = attached;
    this.#watch(attached);
  }

  get id(): string {
    return this.#attached.session.sessionId;
  }

  async send(prompt: string, options: PromptOptions): Promise<void> {
    if (this.#isLost) {
      options.onLost();
      await this.#reopen(options.signal);
    }
    const { session, closed } = this.#attached;
    const turn = new FollowedTurn(prompt, this.#lastKnown, options.onEvent);
    const { signal } = options;
    try {
      await runTurn(session, closed, { prompt }, { signal, onEvent: (event) => turn.push(event) });
    } catch (error) {
      if (isFleetError(error, "FLEET_SERVER_LOST")) await this.#recover(turn, options);
      else throw (isFleetError(error, "FLEET_TURN_FAILED") && errorOfDoor(error.cause)) || error;
    } finally {
      this.#lastKnown = turn.lastId ?? this.#lastKnown;
    }
  }

  async view(): Promise<null> {
    return null;
  }

  async model(signal: AbortSignal): Promise<string | null> {
    return await this.#asked(modelOf, signal);
  }

  async models(signal: AbortSignal): Promise<string[]> {
    return await this.#asked(modelsOf, signal);
  }

  async useModel(model: string, signal: AbortSignal): Promise<void> {
    await this.leave();
    this.#isLost = true; // If #reopen fails, the next request reopens the session with its former model.
    await this.#reopen(signal, { ...this.#settings, model });
  }

  async past(signal: AbortSignal, turns = Number.POSITIVE_INFINITY): Promise<TranscriptEntry[]> {
    const events = await this.#asked(async (session) => await session.getEvents(), signal);
    this.#lastKnown = events.at(-1)?.id ?? this.#lastKnown;
    const entries = transcribed(events);
    const last = entries.at(-1)?.turn ?? 0;
    return entries.filter(({ turn }) => turn > last - turns);
  }

  async leave(): Promise<void> {
    await this.#briefly(this.#attached.session.disconnect());
  }

  /** Waits for a request until it ends, the connection ends, or `GOODBYE_MS` have passed. Never rejects. */
  async #briefly(request: Promise<void>): Promise<void> {
    using limit = deadline(GOODBYE_MS);
    await abortable(Promise.race([request, this.#attached.closed]), limit.signal).catch(() => undefined);
  }

  /** Connects again, waits until the turn has ended, and reports the events that the chat missed. */
  async #recover(turn: FollowedTurn, { signal, onLost, onFound }: PromptOptions): Promise<void> {
    onLost();
    let events: SessionEvent[];
    try {
      await this.#reopen(signal);
      const { session } = this.#attached;
      if (turn.isIn(await abortable(session.getEvents(), signal))) onFound();
      const isAtWork = async () => (await abortable(session.rpc.metadata.activity(), signal)).hasActiveWork;
      while (await isAtWork()) await pause(RETRY_MS, signal);
      events = await abortable(session.getEvents(), signal);
    } catch (cause) {
      // Cancel the turn if there is a connection. Without one, the turn may go on, so do not report it as cancelled.
      if (signal.aborted && !this.#isLost) {
        await this.#briefly(this.#attached.session.abort());
        throw signal.reason;
      }
      const reason = signal.aborted || !(cause instanceof Error) ? "" : ` ${cause.message}`;
      const message = `The connection to the front door at ${this.#door.name} ended during the turn. Nobody knows whether the prompt arrived.${reason}`;
      throw new FleetError("FLEET_SERVER_LOST", message, {
        cause,
        suggestions: ["Look with /history when it is back."],
      });
    }
    turn.catchUp(events);
  }

  async #asked<T>(ask: (session: CopilotSession) => Promise<T>, signal: AbortSignal): Promise<T> {
    if (this.#isLost) await this.#reopen(signal);
    const { session, closed } = this.#attached;
    return await answered(ask(session), closed, signal);
  }

  async #reopen(signal: AbortSignal, settings = this.#settings): Promise<void> {
    this.#attached = await this.#door.resume(this.id, settings, signal);
    this.#settings = settings;
    this.#isLost = false;
    this.#watch(this.#attached);
  }

  #watch({ closed }: Attached): void {
    void closed.then(() => {
      if (this.#attached.closed === closed) this.#isLost = true;
    });
  }
}

/** Turns events into entries of a transcript, with the code that reads a history on disk. */
function transcribed(events: readonly SessionEvent[]): TranscriptEntry[] {
  const transcriber = new Transcriber(null);
  const entries = events.flatMap((event) => [...transcriber.push(Buffer.from(`${JSON.stringify(event)}\n`))]);
  return [...entries, ...transcriber.end(Date.now(), true)];
}
