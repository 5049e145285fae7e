import { FleetError, quote } from "../errors.js";
import { sessionMoved } from "../hosts/problems.js";
import { isRunning, serverIdOf } from "../pool/server.js";
import { RpcError } from "../runtime/client/raw-connection.js";
import { deadline, isTimeout } from "../runtime/deadline.js";
import { readSessionFolder } from "../runtime/session-state.js";
import { markedRecord } from "../sessions/found.js";
import { newSessionId, validateSessionId } from "../sessions/ids.js";
import { noteOpened } from "../sessions/loaded.js";
import { sessionExists, sessionLost } from "../sessions/problems.js";
import { withRoom } from "../sessions/room.js";
import type { ServerRecord, SessionRecord } from "../store/store.js";
import { isElsewhere, isNotFound } from "./attachments.js";
import type { Params } from "./client-message.js";
import type { DoorContext, Together } from "./context.js";
import type { Links, ServerLink } from "./links.js";
import { noSuchSession } from "./refusals.js";

/** How long a server may take to start, and to open a session, in milliseconds. */
const OPEN_MS = 30_000;

export interface OpenerContext extends DoorContext {
  user: string;
  links: Links;
  together: Together;
  /** Aborts when the client has gone. */
  signal: AbortSignal;
}

export interface OpenRequest {
  record: SessionRecord;
  /** What the client asked for. */
  asked: Params;
  /** It was recorded just now and cannot be on any disk. */
  isNew: boolean;
  /** The client has it open already, and goes on having it open if this fails. */
  isOpen?: boolean;
  /** The server on which its turn, which is under way, is marked. */
  marked?: ServerRecord | undefined;
  /** Known before the server is asked: events may come before its answer does. */
  onLink: (link: ServerLink) => void;
  /** The server's answer, before anything that it sent after that. On shared servers the session is not ready yet. */
  onResult: (result: unknown, link: ServerLink) => void;
}

/** Opens sessions for one client: finds or starts the server, makes room in its memory, adds what is the fleet's to add. */
export class Opener {
  readonly #context: OpenerContext;

  constructor(context: OpenerContext) {
    this.#context = context;
  }

  /** The server that a session is on, started if it does not run. */
  async serverFor(record: SessionRecord): Promise<ServerRecord> {
    const { sessions, user, together, signal } = this.#context;
    using limit = deadline(OPEN_MS, signal);
    // Each session by itself: only the start of the server is the same for all that are on it.
    const here = await sessions.broughtHere(record, limit.signal);
    return await together(here.serverId, signal, async (shared) => {
      using starting = deadline(OPEN_MS, shared);
      return await sessions.serverFor(here, { user, signal: starting.signal });
    });
  }

  /** The server for what is about no session: the user's own, or the shared one that the user is placed on. */
  async homeServer(): Promise<ServerRecord> {
    const { sessions, user, config, together, signal } = this.#context;
    const start = async (until: AbortSignal) => {
      using limit = deadline(OPEN_MS, until);
      return await sessions.serverForNew({ user, signal: limit.signal });
    };
    return config.isolation === "shared" ? await start(signal) : await together(serverIdOf(user), signal, start);
  }

  /** The same server once more, started if it has ended. */
  async again({ id }: ServerRecord): Promise<ServerRecord> {
    const { pool, together, signal } = this.#context;
    return await together(id, signal, async (shared) => {
      using limit = deadline(OPEN_MS, shared);
      return await pool.shared(id, { signal: limit.signal });
    });
  }

  async link(server: ServerRecord): Promise<ServerLink> {
    using limit = deadline(OPEN_MS, this.#context.signal);
    return await this.#context.links.to(server, limit.signal);
  }

  /**
   * Records a new session as the user's, before anything is done with its id.
   *
   * @throws FleetError `FLEET_SESSION_EXISTS` whoever has it, `FLEET_SESSION_ID_INVALID`, `FLEET_LIMIT_REACHED`, and as `Pool.serverOf`.
   */
  async recordNew(asked: Params): Promise<SessionRecord> {
    const { store, user, sessions } = this.#context;
    const given = asked.sessionId;
    const id =
      given === undefined || given === null ? newSessionId(null) : validateSessionId(String(given), "sessionId");
    if ((await store.readSession(id)) !== null) throw sessionExists(id);
    await sessions.assertRoom(user);
    const server = await this.homeServer();
    if (readSessionFolder(server.home, id) !== null) throw sessionExists(id);
    const now = new Date().toISOString();
    const record: SessionRecord = {
      id,
      owner: user,
      purpose: null,
      kind: "private",
      members: [],
      persistence: "persistent",
      serverId: server.id,
      ...(await this.#context.directory.ownership()),
      model: typeof asked.model === "string" ? asked.model : null,
      createdAt: now,
      lastUsedAt: now,
      ttlMs: null,
      usedBy: null,
      turns: 0,
    };
    await sessions.record(record);
    await sessions.clearPlace(id, server);
    return record;
  }

  /**
   * Loads a session in its server's memory, within the cap, for this client.
   *
   * @throws FleetError `FLEET_SESSION_NOT_FOUND`, `FLEET_SESSION_LOST`, `FLEET_SESSIONS_EXHAUSTED`, `FLEET_METHOD_DENIED`,
   * `FLEET_SERVER_UNREACHABLE` when the server takes too long, and as `Pool.serverOf`; `RpcError` with what the server refused it with.
   */
  async open(request: OpenRequest): Promise<ServerLink> {
    const { record, marked } = request;
    const { sessions, user } = this.#context;
    using limit = deadline(OPEN_MS, this.#context.signal);
    const { signal } = limit;
    const serverOf = async (now: SessionRecord) =>
      marked !== undefined && isRunning(marked) ? marked : await this.serverFor(now);
    const next = async () => await serverOf(await sessions.recordFor(record.id, user));
    try {
      return await withRoom(
        this.#context,
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
    const { config, store, sessions, directory } = this.#context;
    const { id } = record;
    // Looked at only now, under the mark: gc deletes the record first and looks at the marks then.
    const current = await markedRecord(store, server, id, signal);
    if (current === null) throw noSuchSession(id);
    // Where it is may have changed meanwhile, also from one server of this host to another.
    const isHere = current.serverId === server.id && (await directory.has(current));
    if (!isHere) throw sessionMoved(current, null);
    await directory.assertStorage();
    const method = isNew ? "session.create" : methodFor(record, server, asked);
    const link = await this.link(server);
    onLink(link);
    const { own, protocol } = link;
    const { isolation, home } = server;
    const member = record.owner !== this.#context.user;
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
        // As above, of one whose folder is not looked into; or the last of those who had it loaded has left it since the look.
        const isUnsaved = isElsewhere(asked) || readSessionFolder(server.home, id)?.hasHistory !== true;
        if (method === "session.create" || !isMissing || !isUnsaved || record.turns > 0) throw error;
        await request("session.create");
      });
      if (isolation === "shared") {
        const options = { ...protocol.apartOptions, sessionId: id };
        await link.upstream.request("session.options.update", options, undefined, signal);
      }
    } catch (error) {
      // If it opens it yet, nobody here has it open. Nobody waits for that.
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

/** The runtime cannot resume a session that never had a turn, unless somebody has it open. */
function methodFor(record: SessionRecord, server: ServerRecord, asked: Params): OpeningMethod {
  if (isElsewhere(asked)) return "session.resume";
  const folder = readSessionFolder(server.home, record.id);
  const isLoaded = server.process !== null && folder?.loadedBy.includes(server.process.pid) === true;
  if (folder?.hasHistory === true || isLoaded) return "session.resume";
  if (record.turns > 0) throw sessionLost(record);
  return "session.create";
}
