import type { CopilotSession, ResumeSessionConfig, SessionConfig, SessionEvent } from "@github/copilot-sdk";
import { abortable, deadline, isTimeout, pause } from "../../base/clock.js";
import { FleetError, isFleetError } from "../../base/errors.js";
import { errorOfDoor } from "../../hosts/calls/control-link.js";
import { type ConnectedClient, connectClient } from "../../runtime/client/connect.js";
import { runTurn } from "../../runtime/client/turn.js";
import type { HistoryEvent } from "../../runtime/history/line.js";
import { Transcriber, type TranscriptEntry } from "../../runtime/history/transcript.js";
import { reasonOf, TurnTracker } from "../../runtime/history/turn-tracker.js";
import type { Door } from "../flags/door.js";
import { given } from "../flags/flags.js";
import {
  type Answers,
  type Conversation,
  type Conversations,
  modelOf,
  modelsOf,
  type PromptOptions,
  type SessionSummary,
} from "./conversation.js";

/** The sessions that a token gives access to at a front door. */
export class DoorConversations implements Conversations {
  readonly place: string;
  readonly user = undefined;
  /** Always false, because a front door does not report the provider. */
  readonly isEcho = false;
  readonly #door: DoorLink;
  readonly #answers: Answers;

  constructor(door: Door, answers: Answers) {
    this.#door = new DoorLink(door);
    this.place = `front door ${door.name}`;
    this.#answers = answers;
  }

  async create(model: string | undefined, signal: AbortSignal): Promise<Conversation> {
    const settings = { streaming: true, ...this.#answers };
    const attached = await this.#door.create({ ...settings, ...given({ model }) }, signal);
    return new DoorConversation(this.#door, settings, attached);
  }

  async resume(id: string, model: string | undefined, signal: AbortSignal): Promise<Conversation> {
    const settings = { streaming: true, ...this.#answers, ...given({ model }) };
    return new DoorConversation(this.#door, settings, await this.#door.resume(id, settings, signal));
  }

  async list(signal: AbortSignal): Promise<SessionSummary[]> {
    const { client, closed } = await this.#door.connected(signal);
    const sessions = await answered(client.listSessions(), closed, signal);
    return sessions
      .map(({ sessionId, modifiedTime }) => ({ id: sessionId, title: null, lastUsedAt: modifiedTime.toISOString() }))
      .sort((a, b) => (a.lastUsedAt < b.lastUsedAt ? 1 : -1));
  }

  async delete(id: string, signal: AbortSignal): Promise<void> {
    const { client, closed } = await this.#door.connected(signal);
    await answered(client.deleteSession(id), closed, signal);
  }

  takeWarnings(): string[] {
    return [];
  }

  async close(): Promise<void> {
    await this.#door.close();
  }
}

const ANSWER_MS = 2_000;
/** How long to wait before asking again whether a turn has ended, in milliseconds. */
const RETRY_MS = 500;

class DoorConversation implements Conversation {
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
    using limit = deadline(ANSWER_MS);
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

const [CONNECT_MS, OPEN_MS, GOODBYE_MS] = [10_000, 30_000, 2_000];
/** How long to try to connect again, and the pause between two tries, in milliseconds. */
const RECONNECT_MS = 20_000;

interface Attached {
  session: CopilotSession;
  /** Resolves when the connection has ended. Never rejects. */
  closed: Promise<void>;
}

/** A connection to a front door. If it has ended, the next request connects again. */
class DoorLink {
  readonly #door: Door;
  #connection: ConnectedClient | null = null;
  /** Sessions that may open after the chat gave up on them. A promise settles once its session is deleted or left. */
  readonly #unwanted = new Set<Promise<unknown>>();

  constructor(door: Door) {
    this.#door = door;
  }

  get name(): string {
    return this.#door.name;
  }

  /** @throws FleetError `FLEET_TOKEN_REFUSED`, `FLEET_SERVER_UNREACHABLE`. */
  async connected(signal: AbortSignal): Promise<ConnectedClient> {
    if (this.#connection !== null) return this.#connection;
    const { address, token, tls } = this.#door;
    const endpoint = { address: address.host, port: address.port, token, tls };
    using limit = deadline(CONNECT_MS, signal);
    try {
      const connection = await connectClient(endpoint, {}, limit.signal);
      this.#connection = connection;
      void connection.closed.then(() => {
        if (this.#connection === connection) this.#connection = null;
      });
      return connection;
    } catch (error) {
      signal.throwIfAborted();
      throw this.#explained(error);
    }
  }

  /** Like {@link connected}, but retries for `RECONNECT_MS`, because the front door may only be restarting. */
  async reconnected(signal: AbortSignal): Promise<ConnectedClient> {
    const until = performance.now() + RECONNECT_MS;
    for (;;) {
      try {
        return await this.connected(signal);
      } catch (error) {
        if (!isFleetError(error, "FLEET_SERVER_UNREACHABLE") || performance.now() > until) throw error;
      }
      await pause(RETRY_MS, signal);
    }
  }

  async create(settings: SessionConfig, signal: AbortSignal): Promise<Attached> {
    const { client, closed } = await this.connected(signal);
    const drop = async ({ sessionId }: CopilotSession) => await client.deleteSession(sessionId);
    return { session: await this.#open(client.createSession(settings), drop, { closed, signal }), closed };
  }

  async resume(id: string, settings: ResumeSessionConfig, signal: AbortSignal): Promise<Attached> {
    const { client, closed } = await this.reconnected(signal);
    const drop = async (session: CopilotSession) => await session.disconnect();
    return { session: await this.#open(client.resumeSession(id, settings), drop, { closed, signal }), closed };
  }

  /** @param drop deletes or leaves the session if the front door opens it after the time limit or the abort */
  async #open(
    request: Promise<CopilotSession>,
    drop: (session: CopilotSession) => Promise<void>,
    { closed, signal }: { closed: Promise<void>; signal: AbortSignal },
  ): Promise<CopilotSession> {
    using limit = deadline(OPEN_MS, signal);
    try {
      return await answered(request, closed, limit.signal);
    } catch (error) {
      if (limit.signal.aborted) this.#drop(request.then(drop));
      if (!isTimeout(error)) throw error;
      const message = `The front door at ${this.name} did not open the session in time.`;
      throw new FleetError("FLEET_SERVER_UNREACHABLE", message, { cause: error });
    }
  }

  #drop(dropped: Promise<void>): void {
    const ended = dropped.catch(() => undefined).finally(() => this.#unwanted.delete(ended));
    this.#unwanted.add(ended);
  }

  async close(): Promise<void> {
    const connection = this.#connection;
    this.#connection = null;
    if (connection === null) return;
    using limit = deadline(GOODBYE_MS);
    const goodbye = Promise.all(this.#unwanted).then(() => connection.client.stop());
    await abortable(Promise.race([goodbye, connection.closed]), limit.signal).catch(() => undefined);
    await connection.client.forceStop();
    connection.destroy();
  }

  #explained(error: unknown): unknown {
    if (!isFleetError(error, "FLEET_SERVER_UNREACHABLE")) return error;
    const { cause } = error;
    const reason = cause instanceof Error ? cause.message : "it does not answer";
    if (reason.includes("AUTHENTICATION_FAILED")) {
      return new FleetError("FLEET_TOKEN_REFUSED", `The front door at ${this.name} refused the token.`, {
        cause,
        suggestions: ["Ask the operator of the fleet for a token. The reason is in the log of serve there."],
      });
    }
    return new FleetError("FLEET_SERVER_UNREACHABLE", `The front door at ${this.name} cannot be used: ${reason}.`, {
      cause,
      suggestions: ["Check that copilotfleet serve runs there, and that its serve.listen has this address."],
    });
  }
}

/**
 * Waits for the front door's answer.
 *
 * @throws the error in the answer; `FLEET_SERVER_LOST` if the front door disconnects; the signal's reason if it aborts
 */
async function answered<T>(request: Promise<T>, closed: Promise<void>, signal: AbortSignal): Promise<T> {
  const lost = closed.then((): never => {
    throw new FleetError("FLEET_SERVER_LOST", "The front door closed the connection before it answered.");
  });
  try {
    return await abortable(Promise.race([request, lost]), signal);
  } catch (error) {
    throw errorOfDoor(error) ?? error;
  }
}

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
