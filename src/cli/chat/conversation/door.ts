import type { CopilotSession, ResumeSessionConfig, SessionEvent } from "@github/copilot-sdk";
import { FleetError, isFleetError } from "../../../errors.js";
import { errorOfDoor } from "../../../peers/calls/control-link.js";
import { type ConnectedClient, connectClient } from "../../../runtime/client/connect.js";
import { runTurn } from "../../../runtime/client/turn.js";
import { abortable, deadline, isTimeout, NEVER, pause } from "../../../runtime/deadline.js";
import { Transcriber, type TranscriptEntry } from "../../../runtime/history/transcript.js";
import type { Door } from "../../flags/door.js";
import { given } from "../../flags/flags.js";
import {
  type Answers,
  type Conversation,
  type Conversations,
  modelOf,
  modelsOf,
  type PromptOptions,
  type SessionSummary,
} from "./conversation.js";
import { FollowedTurn } from "./followed-turn.js";

const [CONNECT_MS, OPEN_MS, GOODBYE_MS] = [10_000, 30_000, 2_000];
/** How long to try to connect again, and the pause between two tries, in milliseconds. */
const RECONNECT_MS = 20_000;
const RETRY_MS = 500;

/** The sessions that the holder of a token has at a front door. */
export class DoorConversations implements Conversations {
  readonly place: string;
  readonly user = undefined;
  /** The front door does not name the provider. */
  readonly isEcho = false;
  readonly #door: DoorLink;
  readonly #answers: Answers;

  constructor(door: Door, answers: Answers) {
    this.#door = new DoorLink(door);
    this.place = `front door ${door.name}`;
    this.#answers = answers;
  }

  async create(model: string | undefined): Promise<Conversation> {
    const { client, closed } = await this.#door.connected(NEVER);
    const settings = { streaming: true, ...this.#answers };
    const session = await answered(client.createSession({ ...settings, ...given({ model }) }), closed);
    return new DoorConversation(this.#door, settings, { session, closed });
  }

  async resume(id: string, model?: string): Promise<Conversation> {
    const settings = { streaming: true, ...this.#answers, ...given({ model }) };
    return new DoorConversation(this.#door, settings, await this.#door.resume(id, settings, NEVER));
  }

  async list(): Promise<SessionSummary[]> {
    const { client, closed } = await this.#door.connected(NEVER);
    const sessions = await answered(client.listSessions(), closed);
    return sessions
      .map(({ sessionId, modifiedTime }) => ({ id: sessionId, lastUsedAt: modifiedTime.toISOString() }))
      .sort((a, b) => (a.lastUsedAt < b.lastUsedAt ? 1 : -1));
  }

  async delete(id: string): Promise<void> {
    const { client, closed } = await this.#door.connected(NEVER);
    await answered(client.deleteSession(id), closed);
  }

  takeWarnings(): string[] {
    return [];
  }

  async close(): Promise<void> {
    await this.#door.close();
  }
}

/** A connection to a front door, made again when it has ended. */
class DoorLink {
  readonly #door: Door;
  #connection: ConnectedClient | null = null;

  constructor(door: Door) {
    this.#door = door;
  }

  get name(): string {
    return this.#door.name;
  }

  /** @throws FleetError `FLEET_TOKEN_REFUSED`, `FLEET_SERVER_UNREACHABLE`. */
  async connected(signal: AbortSignal): Promise<ConnectedClient> {
    if (this.#connection !== null) return this.#connection;
    const { address, token } = this.#door;
    const endpoint = { address: address.host, port: address.port, token };
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

  /** Connects again, and tries for a while, because a front door that is replaced is back in a moment. */
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

  async resume(id: string, settings: ResumeSessionConfig, signal: AbortSignal): Promise<Attached> {
    const { client, closed } = await this.reconnected(signal);
    using limit = deadline(OPEN_MS, signal);
    try {
      return { session: await abortable(answered(client.resumeSession(id, settings), closed), limit.signal), closed };
    } catch (error) {
      if (!isTimeout(error)) throw error;
      const message = `The front door at ${this.name} did not open the session in time.`;
      throw new FleetError("FLEET_SERVER_UNREACHABLE", message, { cause: error });
    }
  }

  async close(): Promise<void> {
    const connection = this.#connection;
    this.#connection = null;
    if (connection === null) return;
    using limit = deadline(GOODBYE_MS);
    await abortable(Promise.race([connection.client.stop(), connection.closed]), limit.signal).catch(() => undefined);
    await connection.client.forceStop();
    connection.destroy();
  }

  #explained(error: unknown): unknown {
    if (!isFleetError(error, "FLEET_SERVER_UNREACHABLE")) return error;
    const { cause } = error;
    const reason = cause instanceof Error ? cause.message : "it does not answer";
    if (reason.includes("AUTHENTICATION_FAILED")) {
      return new FleetError("FLEET_TOKEN_REFUSED", `The front door at ${this.name} refused the token.`, { cause });
    }
    return new FleetError("FLEET_SERVER_UNREACHABLE", `The front door at ${this.name} cannot be used: ${reason}.`, {
      cause,
      suggestions: ["Check that copilotfleet serve runs there, and that its serve.listen has this address."],
    });
  }
}

interface Attached {
  session: CopilotSession;
  /** Resolves when the connection has ended. Never rejects. */
  closed: Promise<void>;
}

class DoorConversation implements Conversation {
  readonly #door: DoorLink;
  #settings: ResumeSessionConfig;
  #attached: Attached;
  #isLost = false;
  /** The id of the last event that this chat knows from the history. */
  #lastKnown: string | undefined;

  /** @param settings with which the session is opened again */
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

  async server(): Promise<null> {
    return null;
  }

  async model(): Promise<string | null> {
    return await answered(modelOf(await this.#opened()), this.#attached.closed);
  }

  async models(): Promise<string[]> {
    return await answered(modelsOf(await this.#opened()), this.#attached.closed);
  }

  async useModel(model: string): Promise<void> {
    await this.leave();
    this.#isLost = true; // If #reopen fails, the next request reopens the session with its former model.
    await this.#reopen(NEVER, { ...this.#settings, model });
  }

  async past(turns = Number.POSITIVE_INFINITY): Promise<TranscriptEntry[]> {
    const session = await this.#opened();
    const events = await answered(session.getEvents(), this.#attached.closed);
    this.#lastKnown = events.at(-1)?.id ?? this.#lastKnown;
    const entries = transcribed(events);
    const last = entries.at(-1)?.turn ?? 0;
    return entries.filter(({ turn }) => turn > last - turns);
  }

  async leave(): Promise<void> {
    await this.#briefly(this.#attached.session.disconnect());
  }

  /** Waits for a last request until it ends, the connection ends, or `GOODBYE_MS` is over. Never rejects. */
  async #briefly(request: Promise<void>): Promise<void> {
    using limit = deadline(GOODBYE_MS);
    await abortable(Promise.race([request, this.#attached.closed]), limit.signal).catch(() => undefined);
  }

  /** Waits for the end of a turn that may go on without this chat's connection. Reports the events that the chat missed. */
  async #recover(turn: FollowedTurn, { signal, onLost }: PromptOptions): Promise<void> {
    onLost();
    let events: SessionEvent[];
    try {
      await this.#reopen(signal);
      const { session } = this.#attached;
      const isAtWork = async () => (await abortable(session.rpc.metadata.activity(), signal)).hasActiveWork;
      while (await isAtWork()) await pause(RETRY_MS, signal);
      events = await abortable(session.getEvents(), signal);
    } catch (cause) {
      // Without a connection, the chat cannot cancel the turn, so it must not report that it did.
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

  async #opened(): Promise<CopilotSession> {
    if (this.#isLost) await this.#reopen(NEVER);
    return this.#attached.session;
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

/** Waits for the answer of a front door. @throws FleetError as the front door reports it, or if the connection ends. */
async function answered<T>(request: Promise<T>, closed: Promise<void>): Promise<T> {
  const lost = closed.then((): never => {
    throw new FleetError("FLEET_SERVER_LOST", "The front door closed the connection before it answered.");
  });
  try {
    return await Promise.race([request, lost]);
  } catch (error) {
    throw errorOfDoor(error) ?? error;
  }
}

/** Reads the events as the fleet reads them from a history on its disk. */
function transcribed(events: readonly SessionEvent[]): TranscriptEntry[] {
  const transcriber = new Transcriber(null);
  const entries = events.flatMap((event) => [...transcriber.push(Buffer.from(`${JSON.stringify(event)}\n`))]);
  return [...entries, ...transcriber.end(Date.now())];
}
