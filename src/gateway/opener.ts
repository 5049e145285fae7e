import { setTimeout as delay } from "node:timers/promises";
import { isFleetError } from "../errors.js";
import { isRunning, serverIdOf } from "../pool/server.js";
import { deadline } from "../runtime/deadline.js";
import { readSessionFolder } from "../runtime/session-state.js";
import { admit } from "../sessions/eviction.js";
import { newSessionId, validateSessionId } from "../sessions/ids.js";
import { noteOpened } from "../sessions/loaded.js";
import { serverDraining, sessionExists, sessionLost } from "../sessions/problems.js";
import type { ServerRecord, SessionRecord } from "../store/store.js";
import type { Params } from "./client-message.js";
import type { DoorContext } from "./context.js";
import type { Link, Links } from "./links.js";
import { noSuchSession } from "./refusals.js";
import { APART_OPTIONS, sessionParams } from "./settings.js";

/** How long a server may take to start, and to open a session, in milliseconds. */
const OPEN_MS = 30_000;
const DRAIN_POLL_MS = 20;

export interface OpenerContext extends DoorContext {
  user: string;
  links: Links;
  /** Runs `start` once for all clients that need this server at the same time. */
  together: (serverId: string, start: () => Promise<ServerRecord>) => Promise<ServerRecord>;
  /** Aborts when the client has gone. */
  signal: AbortSignal;
}

export interface OpenRequest {
  record: SessionRecord;
  /** What the client asked for. */
  asked: Params;
  /** It was recorded just now and cannot be on any disk. */
  isNew: boolean;
  /** The server on which its turn, which is under way, is marked. */
  marked?: ServerRecord | undefined;
  /** Known before the server is asked: events may come before its answer does. */
  onLink: (link: Link) => void;
  /** The server's answer, before anything that it sent after that. On shared servers the session is not ready yet. */
  onResult: (result: unknown, link: Link) => void;
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
    return await together(record.serverId, async () => {
      using limit = deadline(OPEN_MS, signal);
      return await sessions.serverFor(record, { user, signal: limit.signal });
    });
  }

  /** The server for what is about no session: the user's own, or the shared one that the user is placed on. */
  async homeServer(): Promise<ServerRecord> {
    const { sessions, user, config, together, signal } = this.#context;
    const start = async () => {
      using limit = deadline(OPEN_MS, signal);
      return await sessions.serverForNew({ user, signal: limit.signal });
    };
    return config.isolation === "shared" ? await start() : await together(serverIdOf(user), start);
  }

  /** The same server once more, started if it has ended. */
  async again({ id }: ServerRecord): Promise<ServerRecord> {
    const { pool, together, signal } = this.#context;
    return await together(id, async () => {
      using limit = deadline(OPEN_MS, signal);
      return await pool.shared(id, { signal: limit.signal });
    });
  }

  async link(server: ServerRecord): Promise<Link> {
    using limit = deadline(OPEN_MS, this.#context.signal);
    return await this.#context.links.to(server, limit.signal);
  }

  /**
   * Records a new session as the user's, before anything is done with its id.
   *
   * @throws FleetError `FLEET_SESSION_EXISTS` whoever has it, `FLEET_SESSION_ID_INVALID`, and as `Pool.serverOf`.
   */
  async recordNew(asked: Params): Promise<SessionRecord> {
    const { store, user } = this.#context;
    const given = asked.sessionId;
    const id =
      given === undefined || given === null ? newSessionId(null) : validateSessionId(String(given), "sessionId");
    if ((await store.readSession(id)) !== null) throw sessionExists(id);
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
      model: typeof asked.model === "string" ? asked.model : null,
      createdAt: now,
      lastUsedAt: now,
      ttlMs: null,
      usedBy: null,
      turns: 0,
    };
    await store.createSession(record).catch((error: unknown) => {
      throw isFleetError(error, "FLEET_SESSION_EXISTS") ? sessionExists(id) : error;
    });
    return record;
  }

  /**
   * Loads a session in its server's memory, within the cap, for this client.
   *
   * @throws FleetError `FLEET_SESSION_NOT_FOUND`, `FLEET_SESSION_LOST`, `FLEET_SESSIONS_EXHAUSTED`, `FLEET_METHOD_DENIED`, and as
   * `Pool.serverOf`; `RpcError` with what the server refused it with.
   */
  async open(request: OpenRequest): Promise<Link> {
    const { config, store, sessions, signal } = this.#context;
    const { record, marked } = request;
    using limit = deadline(OPEN_MS, signal);
    for (;;) {
      const server = marked !== undefined && isRunning(marked) ? marked : await this.serverFor(record);
      {
        using _use = await admit(server, record.id, {
          store,
          answerMs: config.health.timeoutMs,
          maxActive: config.session.maxActive,
          waitMs: OPEN_MS,
          signal: limit.signal,
        });
        // Under the mark: from here on a drain waits for this one. Who had marked it before is waited for already.
        if (server === marked || (await sessions.admitted(server)))
          return await this.#load(server, request, limit.signal);
      }
      if (limit.signal.aborted) throw serverDraining(server.id);
      await delay(DRAIN_POLL_MS);
    }
  }

  async #load(
    server: ServerRecord,
    { record, asked, isNew, onLink, onResult }: OpenRequest,
    signal: AbortSignal,
  ): Promise<Link> {
    const { config, store, sessions } = this.#context;
    const { id } = record;
    // Looked at only now, under the mark: gc deletes the record first and looks at the marks then.
    if ((await store.readSession(id)) === null) throw noSuchSession(id);
    const method = isNew ? "session.create" : methodFor(record, server);
    const link = await this.link(server);
    onLink(link);
    const { own } = link;
    const { isolation } = server;
    const { provider, gitHubToken } = await sessions.surroundings(server, record.owner, signal);
    const params = sessionParams(method, asked, record, { config, own, isolation, provider, gitHubToken });
    noteOpened(server, id);
    await link.upstream.request(method, params, (result) => onResult(result, link));
    if (isolation === "shared") {
      await link.upstream.request("session.options.update", { ...APART_OPTIONS, sessionId: id });
    }
    return link;
  }
}

/** The runtime cannot resume a session that never had a turn, unless somebody has it open. */
function methodFor(record: SessionRecord, server: ServerRecord): "session.create" | "session.resume" {
  const folder = readSessionFolder(server.home, record.id);
  const isLoaded = server.process !== null && folder?.loadedBy.includes(server.process.pid) === true;
  if (folder?.hasHistory === true || isLoaded) return "session.resume";
  if (record.turns > 0) throw sessionLost(record);
  return "session.create";
}
