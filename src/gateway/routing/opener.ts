import { FleetError, quote } from "../../errors.js";
import { sessionMoved } from "../../hosts/problems.js";
import { newSessionId, serverIdOf, validateSessionId } from "../../model/ids.js";
import type { ServerRecord } from "../../model/server.js";
import { newSessionRecord, type SessionRecord } from "../../model/session.js";
import { isRunning } from "../../pool/server.js";
import { deadline, isTimeout } from "../../runtime/deadline.js";
import { readSessionFolder } from "../../runtime/history/session-state.js";
import { RpcError } from "../../runtime/wire/rpc-client.js";
import { markedRecord } from "../../sessions/find.js";
import { noteOpened } from "../../sessions/memory/loaded.js";
import { sessionExists, sessionLost } from "../../sessions/problems.js";
import { withRoom } from "../../sessions/use/room.js";
import { type ClientState, isElsewhere } from "../state/client-state.js";
import type { ServerLink } from "../state/links.js";
import type { Params } from "../wire/client-message.js";
import { isNotFound } from "../wire/events.js";
import { noSuchSession } from "../wire/refusals.js";
import type { Connector } from "./connector.js";

/** How long a server may take to start, and how long it may take to open a session, in milliseconds. */
const OPEN_MS = 30_000;

export interface OpenRequest {
  record: SessionRecord;
  /** The parameters of the client's request. */
  asked: Params;
  /** Whether the session was recorded a moment ago, and so cannot be on a disk. */
  isNew: boolean;
  /** Whether the client has the session open already. It still does if this fails. */
  isOpen?: boolean;
  /** The server that holds the use marker of the client's turn, if a turn is under way. */
  marked?: ServerRecord | undefined;
  /** Called before the request is sent, because events may arrive before the answer. */
  onLink: (link: ServerLink) => void;
  /**
   * Called with the server's answer, before any frame behind it. On a shared server the session still needs more
   * settings.
   */
  onResult: (result: unknown, link: ServerLink) => void;
}

/**
 * Opens sessions for one client. It finds or starts the server, makes room in the server's memory, and adds the fleet's
 * own settings.
 */
export class Opener {
  readonly #state: ClientState;
  readonly #connector: Connector;

  constructor(state: ClientState, connector: Connector) {
    this.#state = state;
    this.#connector = connector;
  }

  /** The server that a session is on, started if it does not run. */
  async serverFor(record: SessionRecord): Promise<ServerRecord> {
    const { door, user, gone } = this.#state;
    const { sessions } = door;
    using limit = deadline(OPEN_MS, gone);
    // Bring each session here separately. Only the start of the server is shared by all sessions on it.
    const here = await sessions.broughtHere(record, limit.signal);
    return await door.startOnce(here.serverId, gone, async (shared) => {
      using starting = deadline(OPEN_MS, shared);
      return await sessions.serverFor(here, { user, signal: starting.signal });
    });
  }

  /** The server for requests without a session: the user's own, or the shared one that the user is placed on. */
  async homeServer(): Promise<ServerRecord> {
    const { door, user, gone } = this.#state;
    const start = async (until: AbortSignal) => {
      using limit = deadline(OPEN_MS, until);
      return await door.sessions.serverForNew({ user, signal: limit.signal });
    };
    const isShared = door.config.isolation === "shared";
    return isShared ? await start(gone) : await door.startOnce(serverIdOf(user), gone, start);
  }

  /** The same server again, started if it has ended. */
  async again({ id }: ServerRecord): Promise<ServerRecord> {
    const { door, gone } = this.#state;
    return await door.startOnce(id, gone, async (shared) => {
      using limit = deadline(OPEN_MS, shared);
      return await door.pool.shared(id, { signal: limit.signal });
    });
  }

  async link(server: ServerRecord): Promise<ServerLink> {
    using limit = deadline(OPEN_MS, this.#state.gone);
    return await this.#connector.to(server, limit.signal);
  }

  /**
   * Records a new session for the user, before anything else uses its id.
   *
   * @throws FleetError `FLEET_SESSION_EXISTS` when any user has a session with this id; `FLEET_SESSION_ID_INVALID`,
   * `FLEET_LIMIT_REACHED`, and the errors of `Pool.serverOf`.
   */
  async recordNew(asked: Params): Promise<SessionRecord> {
    const { user, door } = this.#state;
    const { store, sessions, directory } = door;
    const given = asked.sessionId;
    const id =
      given === undefined || given === null ? newSessionId(null) : validateSessionId(String(given), "sessionId");
    if ((await store.sessions.read(id)) !== null) throw sessionExists(id);
    await sessions.assertRoom(user);
    const server = await this.homeServer();
    if (readSessionFolder(server.home, id) !== null) throw sessionExists(id);
    const place = { serverId: server.id, ...(await directory.ownership()) };
    const model = typeof asked.model === "string" ? asked.model : null;
    const record = newSessionRecord({ id, owner: user, model }, place);
    await sessions.record(record);
    await sessions.clearPlace(id, server);
    return record;
  }

  /**
   * Loads a session into its server's memory, within the cap, for this client.
   *
   * @throws FleetError `FLEET_SESSION_NOT_FOUND`, `FLEET_SESSION_LOST`, `FLEET_SESSIONS_EXHAUSTED`,
   * `FLEET_METHOD_DENIED`; `FLEET_SERVER_UNREACHABLE` when the server takes too long; the errors of `Pool.serverOf`;
   * and `RpcError` with the server's refusal.
   */
  async open(request: OpenRequest): Promise<ServerLink> {
    const { record, marked } = request;
    const { door, user, gone } = this.#state;
    using limit = deadline(OPEN_MS, gone);
    const { signal } = limit;
    const serverOf = async (now: SessionRecord) =>
      marked !== undefined && isRunning(marked) ? marked : await this.serverFor(now);
    const next = async () => await serverOf(await door.sessions.recordFor(record.id, user));
    try {
      return await withRoom(
        door,
        { sessionId: record.id, server: await serverOf(record), next, marked, waitMs: OPEN_MS, signal },
        async (server) => await this.#load(server, request, signal),
      );
    } catch (error) {
      throw isTimeout(error) ? notOpened(record.id, error) : error;
    }
  }

  async #load(
    server: ServerRecord,
    { record, asked, isNew, isOpen = false, onLink, onResult }: OpenRequest,
    signal: AbortSignal,
  ): Promise<ServerLink> {
    const { config, store, sessions, directory } = this.#state.door;
    const { id } = record;
    // Read the record only now, under the use marker: gc deletes the record before it looks for use markers.
    const current = await markedRecord(store, server, id, signal);
    if (current === null) throw noSuchSession(id);
    // The session may have moved since the first read, to another host or to another server of this host.
    const isHere = current.serverId === server.id && (await directory.has(current));
    if (!isHere) throw sessionMoved(current, null);
    await directory.assertStorage();
    const method = isNew ? "session.create" : methodFor(record, server, asked);
    const link = await this.link(server);
    onLink(link);
    const { own, protocol } = link;
    const { isolation, home } = server;
    const member = record.owner !== this.#state.user;
    const { provider, gitHubToken } = await sessions.surroundings(server, record.owner, signal);
    const request = async (name: OpeningMethod) => {
      const params = protocol.sessionParams(name, asked, record, {
        config,
        own,
        member,
        isolation,
        home,
        provider,
        gitHubToken,
      });
      noteOpened(server, id);
      await link.upstream.request(name, params, (result) => onResult(result, link), signal);
    };
    try {
      await request(method).catch(async (error: unknown) => {
        const isMissing = error instanceof RpcError && isNotFound(error.message);
        // The session may never have had a turn, so that it must be created. `methodFor` cannot know this if the client
        // chose the session's folder, which we do not read, or if the session was unloaded after `methodFor` looked.
        const isUnsaved = isElsewhere(asked) || readSessionFolder(server.home, id)?.hasHistory !== true;
        if (method === "session.create" || !isMissing || !isUnsaved || record.turns > 0) throw error;
        await request("session.create");
      });
      if (isolation === "shared") {
        const options = { ...protocol.apartOptions, sessionId: id };
        await link.upstream.request("session.options.update", options, undefined, signal);
      }
    } catch (error) {
      // The server may still open the session, but no client here would have it open. Do not wait for the detach.
      if (signal.aborted && !isOpen)
        link.upstream.request("session.detach", { sessionId: id }).catch(() => "it has gone");
      throw error;
    }
    return link;
  }
}

type OpeningMethod = "session.create" | "session.resume";

function notOpened(sessionId: string, cause: unknown): FleetError {
  return new FleetError(
    "FLEET_SERVER_UNREACHABLE",
    `The server did not open session ${quote(sessionId)} within ${OPEN_MS / 1000} s.`,
    { cause, suggestions: ["Try again in a moment.", "copilotfleet ps"] },
  );
}

/**
 * Chooses the method because the runtime cannot resume a session that never had a turn, unless a client has it open.
 */
function methodFor(record: SessionRecord, server: ServerRecord, asked: Params): OpeningMethod {
  if (isElsewhere(asked)) return "session.resume";
  const folder = readSessionFolder(server.home, record.id);
  const isLoaded = server.process !== null && folder?.loadedBy.includes(server.process.pid) === true;
  if (folder?.hasHistory === true || isLoaded) return "session.resume";
  if (record.turns > 0) throw sessionLost(record);
  return "session.create";
}
