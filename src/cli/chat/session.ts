import type { CopilotSession, SessionConfig, SessionEvent } from "@github/copilot-sdk";
import { abortable, deadline, isTimeout, pause } from "../../base/clock.js";
import { FleetError, isFleetError } from "../../base/errors.js";
import type { Fleet } from "../../fleet/fleet.js";
import { errorOfDoor } from "../../hosts/calls/control-link.js";
import { type ConnectedClient, connectClient } from "../../runtime/client/connect.js";
import { runTurn } from "../../runtime/client/turn.js";
import { Transcriber, type TranscriptEntry } from "../../runtime/history/transcript.js";
import type { LeaseWait } from "../../sessions/leases.js";
import type { SessionView } from "../../sessions/view.js";
import type { Door } from "../flags/door.js";
import { given } from "../flags/flags.js";

/** The functions that answer the permission requests and questions of the agent. */
export type Answers = Required<Pick<SessionConfig, "onPermissionRequest" | "onUserInputRequest">>;

export interface TurnOptions {
  signal: AbortSignal;
  onEvent: (event: SessionEvent) => void;
  /** Called if the wait for a lease takes longer than a second, and again when the lease or its queue changes. */
  onWait: (wait: LeaseWait) => void;
}

interface OpenSession {
  session: CopilotSession;
  /** Resolves when the connection has ended. Never rejects. Never resolves in a fleet, which connects again itself. */
  closed: Promise<void>;
}

interface SessionSummary {
  id: string;
  title: string | null;
  /** ISO 8601 in UTC. */
  lastUsedAt: string;
}

/** How long a server may take to start and to open a session, in milliseconds. */
const OPEN_MS = 30_000;

/**
 * The sessions of one user, reached through the local fleet or through a front door. If a signal aborts, a call rejects
 * with the signal's reason, and leaves no new session behind.
 */
export type Backend = FleetBackend | DoorBackend;

export class FleetBackend {
  /** Where the sessions are, as the chat shows it. */
  readonly place: string;
  /** The user to name in suggestions. */
  readonly user: string;
  /** Whether the echo model answers. */
  readonly isEcho: boolean;
  readonly #fleet: Fleet;
  readonly #answers: Partial<Answers>;
  #title: string | undefined;

  /** @param title the title of the first session that is created; the others have the default */
  constructor(fleet: Fleet, user: string, { onPermissionRequest, ...answers }: Answers, title?: string) {
    this.place = `user ${user}`;
    this.user = user;
    this.isEcho = fleet.config.provider?.type === "echo";
    this.#fleet = fleet;
    this.#title = title;
    // With session.approve "all" or "none", the fleet itself decides about tools, so leave out the user's handler.
    this.#answers = fleet.config.session.approve === "ask" ? { ...answers, onPermissionRequest } : answers;
  }

  /** Opens a session; creates one if `id` is null. */
  async open(id: string | null, model: string | undefined, signal: AbortSignal): Promise<OpenSession> {
    const { sessions } = this.#fleet;
    using limit = deadline(OPEN_MS, signal);
    const options = { user: this.user, ...this.#answers, ...given({ model }), signal: limit.signal };
    const closed = new Promise<void>(() => undefined);
    if (id !== null) return { session: await sessions.resume(id, options), closed };
    const session = await sessions.create({ ...options, ...given({ title: this.#title }) });
    this.#title = undefined;
    return { session, closed };
  }

  async send({ session }: OpenSession, prompt: string, options: TurnOptions): Promise<void> {
    await this.#fleet.sessions.send(session, prompt, options);
  }

  /** Leaves the session. Its state stays. */
  async leave({ session }: OpenSession): Promise<void> {
    await this.#fleet.sessions.leave(session, { park: true });
  }

  async view(id: string): Promise<SessionView | null> {
    return await this.#fleet.sessions.get(id, { user: this.user });
  }

  /** The sessions, the most recently used first. */
  async list(signal: AbortSignal): Promise<SessionSummary[]> {
    return await abortable(this.#fleet.sessions.list({ user: this.user }), signal);
  }

  async delete(id: string, signal: AbortSignal): Promise<void> {
    await abortable(this.#fleet.sessions.delete([id], { user: this.user, ignoreNotFound: true }), signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // There is nothing to do, because the command closes the fleet.
  }
}

const [CONNECT_MS, GOODBYE_MS] = [10_000, 2_000];
const ASK_OPERATOR = "Ask the operator of the fleet for a token. The log of serve there has the reason.";
const CHECK_SERVE = "Check that copilotfleet serve runs there, and that its serve.listen has this address.";
/** How long to try to connect again, and the pause between two tries, in milliseconds. */
const [RECONNECT_MS, RETRY_MS] = [20_000, 500];

/**
 * The sessions that a token gives access to at a front door. If the connection has ended, the next call connects again.
 */
export class DoorBackend {
  readonly place: string;
  /** Undefined, because only the token identifies the user. */
  readonly user = undefined;
  /** False, because a front door does not report the provider. */
  readonly isEcho = false;
  readonly #door: Door;
  readonly #answers: Answers;
  /** Undefined before the first connection; null after a connection has ended. */
  #connection: ConnectedClient | null | undefined;
  /** Settles when a session that opened after the chat gave up on it is deleted or left. */
  #unwanted: Promise<unknown> = Promise.resolve();

  constructor(door: Door, answers: Answers) {
    this.place = `front door ${door.name}`;
    this.#door = door;
    this.#answers = answers;
  }

  async open(id: string | null, model: string | undefined, signal: AbortSignal): Promise<OpenSession> {
    const { client, closed } = await this.#connected(signal);
    const settings = { streaming: true, ...this.#answers, ...given({ model }) };
    const opening = id === null ? client.createSession(settings) : client.resumeSession(id, settings);
    using limit = deadline(OPEN_MS, signal);
    try {
      return { session: await abortable(opening, limit.signal), closed };
    } catch (error) {
      if (limit.signal.aborted) {
        const drop = async (session: CopilotSession) =>
          id === null ? await client.deleteSession(session.sessionId) : await session.disconnect();
        this.#unwanted = opening.then(drop).catch(() => undefined);
      }
      if (!isTimeout(error)) throw errorOfDoor(error) ?? error;
      const message = `The front door at ${this.#door.name} did not open the session in time.`;
      throw new FleetError("FLEET_SERVER_UNREACHABLE", message, { cause: error });
    }
  }

  async send({ session, closed }: OpenSession, prompt: string, options: TurnOptions): Promise<void> {
    try {
      await runTurn(session, closed, { prompt }, options);
    } catch (error) {
      if (!isFleetError(error, "FLEET_SERVER_LOST"))
        throw (isFleetError(error, "FLEET_TURN_FAILED") && errorOfDoor(error.cause)) || error;
      const message = "The connection to the front door ended during the turn.";
      const suggestions = ["Look with /history whether the prompt arrived, before you send it again."] as const;
      throw new FleetError("FLEET_SERVER_LOST", message, { cause: error, suggestions });
    }
  }

  async leave({ session }: OpenSession): Promise<void> {
    using limit = deadline(GOODBYE_MS);
    await abortable(session.disconnect(), limit.signal).catch(() => undefined);
  }

  async view(_id: string): Promise<SessionView | null> {
    return null; // a front door does not report it
  }

  async list(signal: AbortSignal): Promise<SessionSummary[]> {
    const { client } = await this.#connected(signal);
    const sessions = await abortable(client.listSessions(), signal);
    return sessions
      .map(({ sessionId, modifiedTime }) => ({ id: sessionId, title: null, lastUsedAt: modifiedTime.toISOString() }))
      .sort((a, b) => (a.lastUsedAt < b.lastUsedAt ? 1 : -1));
  }

  async delete(id: string, signal: AbortSignal): Promise<void> {
    const { client } = await this.#connected(signal);
    await abortable(client.deleteSession(id), signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const connection = this.#connection;
    if (connection == null) return;
    using limit = deadline(GOODBYE_MS);
    const goodbye = this.#unwanted.then(async () => await connection.client.stop());
    await abortable(Promise.race([goodbye, connection.closed]), limit.signal).catch(() => undefined);
    await connection.client.forceStop();
    connection.destroy();
  }

  /** Retries after a lost connection, because the front door may only be restarting. */
  async #connected(signal: AbortSignal): Promise<ConnectedClient> {
    const until = performance.now() + (this.#connection === undefined ? 0 : RECONNECT_MS);
    for (;;) {
      if (this.#connection != null) return this.#connection;
      try {
        return await this.#connect(signal);
      } catch (error) {
        signal.throwIfAborted();
        if (!isFleetError(error, "FLEET_SERVER_UNREACHABLE") || performance.now() > until) throw error;
      }
      await pause(RETRY_MS, signal);
    }
  }

  /** @throws FleetError `FLEET_TOKEN_REFUSED`, `FLEET_SERVER_UNREACHABLE`. */
  async #connect(signal: AbortSignal): Promise<ConnectedClient> {
    const { address, name, token, tls } = this.#door;
    using limit = deadline(CONNECT_MS, signal);
    try {
      const endpoint = { address: address.host, port: address.port, token, tls };
      const connection = await connectClient(endpoint, {}, limit.signal);
      this.#connection = connection;
      void connection.closed.then(() => {
        this.#connection = null;
      });
      return connection;
    } catch (error) {
      if (!isFleetError(error, "FLEET_SERVER_UNREACHABLE")) throw error;
      const { cause } = error;
      const reason = cause instanceof Error ? cause.message : "it does not answer";
      const [code, message, advice] = reason.includes("AUTHENTICATION_FAILED")
        ? (["FLEET_TOKEN_REFUSED", "refused the token", ASK_OPERATOR] as const)
        : (["FLEET_SERVER_UNREACHABLE", `cannot be used: ${reason}`, CHECK_SERVE] as const);
      throw new FleetError(code, `The front door at ${name} ${message}.`, { cause, suggestions: [advice] });
    }
  }
}

/**
 * A session that the chat has open. If the server or the connection has ended, the next call opens the session again.
 * If a signal aborts, the call rejects with the signal's reason, and the session can still be used.
 */
export class ChatSession {
  readonly id: string;
  readonly #backend: Backend;
  #model: string | undefined;
  /** Null if the session must be opened again. */
  #open: OpenSession | null = null;

  private constructor(backend: Backend, id: string, model: string | undefined) {
    this.id = id;
    this.#backend = backend;
    this.#model = model;
  }

  /** Opens a session; creates one if `id` is null. */
  static async open(backend: Backend, id: string | null, model: string | undefined, signal: AbortSignal) {
    const open = await backend.open(id, model, signal);
    const session = new ChatSession(backend, open.session.sessionId, model);
    session.#keep(open);
    return session;
  }

  /** Runs one turn. @throws the errors of `fleet.sessions.send`. */
  async send(prompt: string, options: TurnOptions): Promise<void> {
    await this.#backend.send(this.#open ?? (await this.#reopen(options.signal)), prompt, options);
  }

  /** The model of the next turn; null if the server does not report it. */
  async model(signal: AbortSignal): Promise<string | null> {
    return await this.#asked(async ({ rpc }) => (await rpc.model.getCurrent()).modelId ?? null, signal);
  }

  /** The models that the user may choose from; empty if the provider does not list them. */
  async models(signal: AbortSignal): Promise<string[]> {
    const { list } = await this.#asked(async ({ rpc }) => await rpc.model.list(), signal);
    return list.flatMap((each) => (typeof each === "object" && each !== null && "id" in each ? [String(each.id)] : []));
  }

  /** Opens the session again with the model. If that succeeds, all later openings use this model, too. */
  async useModel(model: string, signal: AbortSignal): Promise<void> {
    await this.#reopen(signal, model);
    this.#model = model;
  }

  /** Reads the conversation so far. @param turns how many of the latest turns to read */
  async past(signal: AbortSignal, turns = Number.POSITIVE_INFINITY): Promise<TranscriptEntry[]> {
    const events = await this.#asked(async (session) => await session.getEvents(), signal);
    const transcriber = new Transcriber(null);
    const entries = events.flatMap((event) => [...transcriber.push(Buffer.from(`${JSON.stringify(event)}\n`))]);
    entries.push(...transcriber.end(Date.now(), true));
    const last = entries.at(-1)?.turn ?? 0;
    return entries.filter(({ turn }) => turn > last - turns);
  }

  /** Leaves the session. Its state stays. */
  async leave(): Promise<void> {
    const open = this.#open;
    this.#open = null;
    if (open !== null) await this.#backend.leave(open);
  }

  /** After an error other than an abort, opens the session again and asks once more. */
  async #asked<T>(ask: (session: CopilotSession) => Promise<T>, signal: AbortSignal): Promise<T> {
    const open = this.#open ?? (await this.#reopen(signal));
    return await abortable(ask(open.session), signal).catch(async (error: unknown) => {
      if (signal.aborted) throw error;
      const again = await this.#reopen(signal);
      return await abortable(ask(again.session), signal);
    });
  }

  async #reopen(signal: AbortSignal, model = this.#model): Promise<OpenSession> {
    await this.leave();
    return this.#keep(await this.#backend.open(this.id, model, signal));
  }

  #keep(open: OpenSession): OpenSession {
    this.#open = open;
    void open.closed.then(() => {
      if (this.#open === open) this.#open = null;
    });
    return open;
  }
}
