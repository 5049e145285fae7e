import type { CopilotSession, ProviderConfig } from "@github/copilot-sdk";
import type { Config } from "../config/schema.js";
import { FleetError, isFleetError, quote } from "../errors.js";
import type { Clients } from "../pool/clients.js";
import type { Pool } from "../pool/pool.js";
import { isRunning, serverIdOf } from "../pool/server.js";
import type { ConnectedClient } from "../runtime/client/connect.js";
import { runTurn, type TurnOptions, type TurnReply } from "../runtime/client/turn.js";
import { abortable, deadline } from "../runtime/deadline.js";
import { homeOf } from "../runtime/server-folder.js";
import { listSessionFolders, readSessionFolder } from "../runtime/session-state.js";
import type { ServerRecord, SessionRecord, Store } from "../store/store.js";
import { deleteSessionState } from "./delete.js";
import { newSessionId } from "./ids.js";
import { type SessionOptions, sessionConfig } from "./session-config.js";
import { type SessionView, viewSession } from "./view.js";

export interface SessionsContext {
  store: Store;
  config: Config;
  stateRoot: string;
  pool: Pool;
  clients: Clients;
  /** The configured model provider, or null for GitHub's own models; an echo model is started on first use. */
  provider: () => Promise<ProviderConfig | null>;
}

export interface CreateOptions {
  user: string;
  /** Left out: a random id, behind the purpose if there is one. */
  id?: string | undefined;
  purpose?: string | undefined;
  model?: string | undefined;
  /** Milliseconds after its last use until gc may delete it. Left out: the configured TTL. */
  ttlMs?: number | undefined;
  /** Further settings for the SDK's `createSession`. */
  session?: SessionOptions | undefined;
  signal: AbortSignal;
}

export interface ResumeOptions {
  user: string;
  session?: SessionOptions | undefined;
  signal: AbortSignal;
}

const GOODBYE_MS = 2_000;

/** A session that is loaded in its server and attached to this process. */
export class OpenSession {
  readonly session: CopilotSession;
  readonly #store: Store;
  readonly #connection: ConnectedClient;
  /** The record of the last turn, being written: the reply does not wait for the disk. */
  #recording: Promise<unknown> = Promise.resolve(undefined);

  constructor(session: CopilotSession, store: Store, connection: ConnectedClient) {
    this.session = session;
    this.#store = store;
    this.#connection = connection;
    // The SDK's own sendAndWait hangs until its time-out when the server ends during the turn; this one does not.
    session.sendAndWait = async (message, timeout = 60_000) => {
      const options = typeof message === "string" ? { prompt: message } : message;
      const reply = await runTurn(session, this.#connection.closed, options, { timeoutMs: timeout });
      await this.#record();
      return reply.event;
    };
  }

  /** One turn. @throws as {@link runTurn}. */
  async send(prompt: string, options: TurnOptions = {}): Promise<TurnReply> {
    const reply = await runTurn(this.session, this.#connection.closed, { prompt }, options).catch(explained);
    await this.#record();
    return reply;
  }

  /** Resolves when all turns are recorded. @throws FleetError when one could not be. */
  async recorded(): Promise<void> {
    const failure = await this.#recording;
    if (failure !== undefined) throw failure;
  }

  /** Leaves the session: it is unloaded when nobody else is attached, and its state stays. */
  async close(): Promise<void> {
    await this.recorded();
    using limit = deadline(GOODBYE_MS);
    // A server that died or hangs has nothing more to say, and what it holds goes with the connection.
    await abortable(Promise.race([this.session.disconnect(), this.#connection.closed]), limit.signal).catch(() => null);
  }

  /** Begins to record a turn, once the one before is recorded. */
  async #record(): Promise<void> {
    await this.recorded();
    this.#recording = this.#store
      .updateSession(this.session.sessionId, (record) => {
        record.lastUsedAt = new Date().toISOString();
        record.turns += 1;
      })
      .then(
        () => undefined,
        (error: unknown) => error,
      );
  }
}

/** Sessions and whose they are. Ownership stands in the store, never in the text of an id. */
export class Sessions {
  readonly #context: SessionsContext;

  constructor(context: SessionsContext) {
    this.#context = context;
  }

  /**
   * Creates a session and starts its user's server if need be. The record is written first: it is what makes the id
   * the user's.
   *
   * @throws FleetError `FLEET_SESSION_EXISTS` whoever has it; and as `Pool.serverOf`.
   */
  async create(options: CreateOptions): Promise<OpenSession> {
    const { store, config, stateRoot } = this.#context;
    const serverId = serverIdOf(options.user);
    const now = new Date().toISOString();
    const record: SessionRecord = {
      id: options.id ?? newSessionId(options.purpose ?? null),
      owner: options.user,
      purpose: options.purpose ?? null,
      kind: "private",
      members: [],
      persistence: "persistent",
      serverId,
      model: options.model ?? null,
      createdAt: now,
      lastUsedAt: now,
      ttlMs: options.ttlMs ?? config.session.ttlMs,
      turns: 0,
    };
    await this.#context.provider(); // a model that cannot be used is refused before anything is started
    // The runtime silently goes on with an id that it finds on its disk: look first.
    if (readSessionFolder(homeOf(stateRoot, serverId), record.id) !== null) throw sessionExists(record.id);
    await store.createSession(record).catch((error: unknown) => {
      // One answer for all: whose it is, is nobody's business.
      throw isFleetError(error, "FLEET_SESSION_EXISTS") ? sessionExists(record.id) : error;
    });
    try {
      const { connection } = await this.#connect(options.user, options.signal);
      return await this.#createIn(connection, record, options);
    } catch (error) {
      // Nobody has used it yet: an id whose creation failed is free again.
      await store.deleteSession(record.id);
      throw error;
    }
  }

  /**
   * Opens a session of this user again, also after its server was stopped or killed, also if it never had a turn.
   *
   * @throws FleetError `FLEET_SESSION_NOT_FOUND`, the same for one that is not there and one that is somebody else's;
   * `FLEET_SESSION_LOST` when it had turns and its history is gone.
   */
  async resume(id: string, options: ResumeOptions): Promise<OpenSession> {
    const record = await this.#owned(id, options.user);
    await this.#context.provider();
    const { server, connection } = await this.#connect(record.owner, options.signal);
    if (readSessionFolder(server.home, id)?.hasHistory !== true) {
      if (record.turns > 0) throw sessionLost(record);
      return await this.#createIn(connection, record, options);
    }
    const config = sessionConfig(this.#context.config, record, await this.#context.provider(), options.session);
    const session = await answer(connection.client.resumeSession(id, config), connection, options.signal);
    return new OpenSession(session, this.#context.store, connection);
  }

  /** All sessions, or one user's: recorded ones, and those that a user's own client made on the user's own server. */
  async list(user?: string): Promise<SessionView[]> {
    const { store } = this.#context;
    const [{ servers }, records] = await Promise.all([store.readRegistry(), store.listSessions()]);
    const recorded = new Set(records.map(({ id }) => id));
    const wanted = (owner: string | null) => user === undefined || owner === user;
    const unrecorded = Object.values(servers)
      .filter((server) => server.user !== null && wanted(server.user))
      .flatMap((server) => listSessionFolders(server.home).map((id) => ({ server, id })))
      .filter(({ id }) => !recorded.has(id))
      .map(({ server, id }) => foundRecord(server, id));
    return [...records.filter(({ owner }) => wanted(owner)), ...unrecorded]
      .map((record) => {
        const server = servers[record.serverId];
        const pid = server !== undefined && isRunning(server) ? (server.process?.pid ?? null) : null;
        return viewSession(record, server, pid);
      })
      .sort((a, b) => b.lastUsedAt.localeCompare(a.lastUsedAt) || a.id.localeCompare(b.id));
  }

  /** One session of this user. @throws FleetError `FLEET_SESSION_NOT_FOUND`. */
  async get(id: string, user: string): Promise<SessionView> {
    const record = await this.#owned(id, user);
    const server = (await this.#context.store.readRegistry()).servers[record.serverId];
    return viewSession(
      record,
      server,
      server !== undefined && isRunning(server) ? (server.process?.pid ?? null) : null,
    );
  }

  /**
   * Deletes sessions for good, one after the other, on disk and in the store. Deleting what is gone is success. With
   * `user`, sessions of others are treated as not there.
   *
   * @throws FleetError `FLEET_SESSION_BUSY` when one is in a turn, `FLEET_SESSION_AMBIGUOUS`; those before it are gone.
   */
  async delete(ids: readonly string[], user?: string): Promise<string[]> {
    const { store, config } = this.#context;
    const { servers } = await store.readRegistry();
    for (const id of ids) {
      const record = await store.readSession(id);
      if (user !== undefined && record !== null && record.owner !== user) continue;
      for (const server of holders(Object.values(servers), id, record, user)) {
        await deleteSessionState(server, id, config.health.timeoutMs);
      }
      await store.deleteSession(id);
    }
    return [...ids];
  }

  async #createIn(connection: ConnectedClient, record: SessionRecord, options: ResumeOptions): Promise<OpenSession> {
    const config = sessionConfig(this.#context.config, record, await this.#context.provider(), options.session);
    const creating = connection.client.createSession({ ...config, sessionId: record.id });
    const session = await answer(creating, connection, options.signal);
    return new OpenSession(session, this.#context.store, connection);
  }

  /** The record if the user may use the session; a session found only on the user's own server is recorded now. */
  async #owned(id: string, user: string): Promise<SessionRecord> {
    const { store } = this.#context;
    const record = await store.readSession(id);
    if (record !== null) {
      if (record.owner === user) return record;
      throw sessionNotFound(id);
    }
    const server = (await store.readRegistry()).servers[serverIdOf(user)];
    if (server === undefined || readSessionFolder(server.home, id) === null) throw sessionNotFound(id);
    const found = foundRecord(server, id);
    try {
      await store.createSession(found);
      return found;
    } catch (error) {
      if (isFleetError(error, "FLEET_SESSION_EXISTS")) return await this.#owned(id, user); // recorded by another just now
      throw error;
    }
  }

  async #connect(user: string, signal: AbortSignal): Promise<{ server: ServerRecord; connection: ConnectedClient }> {
    const { server } = await this.#context.pool.serverOf(user, { signal });
    return { server, connection: await this.#context.clients.to(server, {}, signal) };
  }
}

/**
 * The servers in whose homes a session to be deleted lies. Unrecorded ids are unique within a home only, so without a
 * user one that lies in several homes is nobody's in particular.
 */
function holders(
  servers: ServerRecord[],
  id: string,
  record: SessionRecord | null,
  user: string | undefined,
): ServerRecord[] {
  if (record !== null) return servers.filter((server) => server.id === record.serverId);
  const found = servers.filter((server) => readSessionFolder(server.home, id) !== null);
  if (user !== undefined) return found.filter((server) => server.user === user);
  if (found.length <= 1) return found;
  throw new FleetError("FLEET_SESSION_AMBIGUOUS", `${found.length} users have a session ${quote(id)}.`, {
    suggestions: found.map((server) => `copilotfleet delete ${id} --user ${server.user}`),
  });
}

/** A session that a client made on the user's own server, past the fleet: it is that user's, since the server is. */
function foundRecord(server: ServerRecord, id: string): SessionRecord {
  const folder = readSessionFolder(server.home, id);
  return {
    id,
    owner: server.user ?? "",
    purpose: null,
    kind: "private",
    members: [],
    persistence: "persistent",
    serverId: server.id,
    model: null,
    createdAt: (folder?.createdAt ?? new Date()).toISOString(),
    lastUsedAt: (folder?.modifiedAt ?? new Date()).toISOString(),
    ttlMs: null,
    turns: 0,
  };
}

function sessionExists(id: string): FleetError {
  return new FleetError("FLEET_SESSION_EXISTS", `Session ${quote(id)} exists already.`, {
    suggestions: ["Choose another --id, or leave it out for a new one.", `copilotfleet resume ${id} --user USER`],
  });
}

function sessionNotFound(id: string): FleetError {
  return new FleetError("FLEET_SESSION_NOT_FOUND", `There is no session ${quote(id)} for this user.`, {
    suggestions: ["copilotfleet list --user USER"],
  });
}

function sessionLost(record: SessionRecord): FleetError {
  return new FleetError(
    "FLEET_SESSION_LOST",
    `Session ${quote(record.id)} had ${record.turns} turns, and its history is no longer on disk.`,
    { suggestions: [`copilotfleet delete ${record.id}`] },
  );
}

/**
 * What the server answers to a request of the SDK, which has no deadline of its own, and none at the server's end.
 *
 * @throws FleetError `FLEET_SERVER_LOST`, `FLEET_SERVER_UNREACHABLE`, `FLEET_MODEL_UNCONFIGURED`, `FLEET_SESSION_ID_INVALID`;
 * the signal's own reason if the caller gave up.
 */
async function answer<T>(request: Promise<T>, { closed }: ConnectedClient, signal: AbortSignal): Promise<T> {
  const lost = closed.then((): never => {
    throw new FleetError("FLEET_SERVER_LOST", "The server ended before it answered.", {
      suggestions: ["Run the command again: the server is started anew."],
    });
  });
  try {
    return await abortable(Promise.race([request, lost]), signal);
  } catch (cause) {
    if (!signal.aborted || cause !== signal.reason) return explained(cause);
    if (!(cause instanceof DOMException && cause.name === "TimeoutError")) throw cause;
    throw new FleetError("FLEET_SERVER_UNREACHABLE", "The server did not answer in time.", {
      cause,
      suggestions: ["copilotfleet ps", "copilotfleet restart --user USER --force"],
    });
  }
}

/** The runtime's own words for what a user can mend say nothing about what to do in a fleet. */
function explained(error: unknown): never {
  const message = error instanceof Error ? error.message : "";
  // Runtimes differ in what they take: 1.0.85 takes no dot, whatever the contract allows.
  const [, id] = /request with invalid sessionId: (.+)$/s.exec(message) ?? [];
  if (id !== undefined) {
    throw new FleetError("FLEET_SESSION_ID_INVALID", `This runtime does not take the session id ${quote(id)}.`, {
      cause: error,
      suggestions: ["Use letters, digits, _ and - only."],
    });
  }
  if (
    /No GitHub OAuth token or Copilot HMAC key provided|Session was not created with authentication info/i.test(message)
  ) {
    throw new FleetError(
      "FLEET_MODEL_UNCONFIGURED",
      "The server has no GitHub token and no model provider is configured.",
      {
        cause: error,
        suggestions: [
          "copilotfleet spawn --user USER --token-env GITHUB_TOKEN",
          'Set "provider" or "auth" in .copilotfleet.json.',
          "COPILOTFLEET_PROVIDER_TYPE=echo tries everything without an account.",
        ],
      },
    );
  }
  throw error;
}
