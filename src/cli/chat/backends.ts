import type { CopilotSession, SessionConfig, SessionEvent } from "@github/copilot-sdk";
import { FleetError, isFleetError } from "../../base/errors.js";
import type { Fleet } from "../../fleet/fleet.js";
import { errorOfDoor } from "../../hosts/calls/control-link.js";
import { type ConnectedClient, connectClient } from "../../runtime/client/connect.js";
import { runTurn } from "../../runtime/client/turn.js";
import { abortable, deadline, isTimeout, pause } from "../../base/clock.js";
import type { LeaseWait } from "../../sessions/leases.js";
import type { SessionView } from "../../sessions/view.js";
import type { Door } from "../flags/door.js";
import { given } from "../flags/flags.js";

/** The functions that answer the permission requests and questions of the agent. */
export type Answers = Required<
  Pick<SessionConfig, "onPermissionRequest" | "onUserInputRequest" | "onElicitationRequest">
>;

export interface TurnOptions {
  signal: AbortSignal;
  onEvent: (event: SessionEvent) => void;
  /** Called if the wait for a lease takes longer than a second, and again when the lease or its queue changes. */
  onWait: (wait: LeaseWait) => void;
}

export interface OpenSession {
  session: CopilotSession;
  /** Resolves when the connection has ended. Never rejects. Never resolves in a fleet, which connects again itself. */
  closed: Promise<void>;
}

export interface SessionSummary {
  id: string;
  title?: string | null;
  /** ISO 8601 in UTC. */
  lastUsedAt: string;
}

/**
 * The sessions of one user, reached through the local fleet or through a front door. If a signal aborts, a call rejects
 * with the signal's reason, and leaves no new session behind.
 */
export interface Backend {
  /** Where the sessions are, as the chat shows it: `user alice`, or `front door fleet.example:4300`. */
  readonly place: string;
  /** The user to name in suggestions; undefined at a front door, because only the token identifies the user. */
  readonly user: string | undefined;
  /** Whether the echo model answers. False if the chat cannot find out which model answers. */
  readonly isEcho: boolean;
  /** Whether a turn goes on when the chat has lost the connection. */
  readonly outlivesConnection: boolean;
  /** Opens a session; creates one if `id` is null. */
  open(id: string | null, model: string | undefined, signal: AbortSignal): Promise<OpenSession>;
  send(open: OpenSession, prompt: string, options: TurnOptions): Promise<unknown>;
  /** Leaves the session. Its state stays. */
  leave(open: OpenSession): Promise<unknown>;
  /** The session as the fleet shows it; null at a front door, which does not report it. */
  view(id: string): Promise<SessionView | null>;
  /** The sessions, the most recently used first. */
  list(signal: AbortSignal): Promise<SessionSummary[]>;
  delete(id: string, signal: AbortSignal): Promise<void>;
  /** Returns the warnings since the last call: problems that the fleet worked around. */
  takeWarnings(): string[];
  close(): Promise<void>;
}

/** How long a server may take to start and to open a session, in milliseconds. */
const OPEN_MS = 30_000;

export class FleetBackend implements Backend {
  readonly place: string;
  readonly user: string;
  readonly isEcho: boolean;
  readonly outlivesConnection = false;
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

  async send({ session }: OpenSession, prompt: string, options: TurnOptions): Promise<unknown> {
    return await this.#fleet.sessions.send(session, prompt, options);
  }

  async leave({ session }: OpenSession): Promise<unknown> {
    return await this.#fleet.sessions.leave(session, { park: true });
  }

  async view(id: string): Promise<SessionView> {
    return await this.#fleet.sessions.get(id, { user: this.user });
  }

  async list(signal: AbortSignal): Promise<SessionSummary[]> {
    return await abortable(this.#fleet.sessions.list({ user: this.user }), signal);
  }

  async delete(id: string, signal: AbortSignal): Promise<void> {
    await abortable(this.#fleet.sessions.delete([id], { user: this.user, ignoreNotFound: true }), signal);
  }

  takeWarnings(): string[] {
    return this.#fleet.takeWarnings();
  }

  async close(): Promise<void> {
    // There is nothing to do, because the command closes the fleet.
  }
}

const [CONNECT_MS, GOODBYE_MS] = [10_000, 2_000];
/** How long to try to connect again, and the pause between two tries, in milliseconds. */
const [RECONNECT_MS, RETRY_MS] = [20_000, 500];

/** The sessions that a token gives access to at a front door. If the connection has ended, the next call connects again. */
export class DoorBackend implements Backend {
  readonly place: string;
  readonly user = undefined;
  readonly isEcho = false;
  readonly outlivesConnection = true;
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
      throw (isFleetError(error, "FLEET_TURN_FAILED") && errorOfDoor(error.cause)) || error;
    }
  }

  async leave({ session }: OpenSession): Promise<void> {
    using limit = deadline(GOODBYE_MS);
    await abortable(session.disconnect(), limit.signal).catch(() => undefined);
  }

  async view(): Promise<null> {
    return null;
  }

  async list(signal: AbortSignal): Promise<SessionSummary[]> {
    const { client } = await this.#connected(signal);
    const sessions = await abortable(client.listSessions(), signal);
    return sessions
      .map(({ sessionId, modifiedTime }) => ({ id: sessionId, lastUsedAt: modifiedTime.toISOString() }))
      .sort((a, b) => (a.lastUsedAt < b.lastUsedAt ? 1 : -1));
  }

  async delete(id: string, signal: AbortSignal): Promise<void> {
    const { client } = await this.#connected(signal);
    await abortable(client.deleteSession(id), signal);
  }

  takeWarnings(): string[] {
    return [];
  }

  async close(): Promise<void> {
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
      if (reason.includes("AUTHENTICATION_FAILED")) {
        throw new FleetError("FLEET_TOKEN_REFUSED", `The front door at ${name} refused the token.`, {
          cause,
          suggestions: ["Ask the operator of the fleet for a token. The reason is in the log of serve there."],
        });
      }
      throw new FleetError("FLEET_SERVER_UNREACHABLE", `The front door at ${name} cannot be used: ${reason}.`, {
        cause,
        suggestions: ["Check that copilotfleet serve runs there, and that its serve.listen has this address."],
      });
    }
  }
}
