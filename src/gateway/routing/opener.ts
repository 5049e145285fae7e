import { FleetError, quote } from "../../errors.js";
import { newSessionId, validateSessionId } from "../../model/ids.js";
import type { ServerRecord } from "../../model/server.js";
import { newSessionRecord, type SessionRecord } from "../../model/session.js";
import { isRunning } from "../../pool/server.js";
import { deadline, isTimeout } from "../../runtime/deadline.js";
import { readSessionFolder } from "../../runtime/history/session-state.js";
import { markedRecord } from "../../sessions/find.js";
import { sessionExists } from "../../sessions/problems.js";
import { load } from "../../sessions/use/load.js";
import { withRoom } from "../../sessions/use/room.js";
import { serverFor } from "../../sessions/use/server.js";
import type { ClientState } from "../state/client-state.js";
import type { ServerLink } from "../state/links.js";
import type { Params } from "../wire/client-message.js";
import { noSuchSession } from "../wire/refusals.js";
import type { Connector } from "./connector.js";
import { type Opening, upstreamTransport } from "./upstream-transport.js";

/** How long a server may take to start, and how long it may take to open a session, in milliseconds. */
const OPEN_MS = 30_000;

export interface OpenRequest extends Opening {
  record: SessionRecord;
  /** Whether the session was recorded a moment ago, and so cannot be on a disk. */
  isNew: boolean;
  /** The server that holds the use marker of the client's turn, if a turn is under way. */
  marked?: ServerRecord | undefined;
}

/** Finds or starts the servers of one client, and opens its sessions there. */
export class Opener {
  readonly #state: ClientState;
  readonly #connector: Connector;

  constructor(state: ClientState, connector: Connector) {
    this.#state = state;
    this.#connector = connector;
  }

  /** Connects to the server that a session is on, which is started if it does not run. Does not open the session. */
  async linkFor(record: SessionRecord): Promise<ServerLink> {
    const { links, door } = this.#state;
    const near = (await door.directory.has(record)) ? links.server(record.serverId) : undefined;
    return near ?? (await this.#connector.to(await this.#serverFor(record)));
  }

  async #serverFor(record: SessionRecord): Promise<ServerRecord> {
    const { door, user, gone } = this.#state;
    using limit = deadline(OPEN_MS, gone);
    return await serverFor(door.sessions.context, record, { user, signal: limit.signal, sharedUntil: door.closed });
  }

  /** The server for requests without a session: the user's own, or the shared one that the user is placed on. */
  async homeServer(): Promise<ServerRecord> {
    const { door, user, gone } = this.#state;
    return await door.sessions.serverForNew({ user, signal: gone, sharedUntil: door.closed });
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
    const { record, marked, isNew } = request;
    const { door, user, gone } = this.#state;
    const { store, sessions } = door;
    const { id } = record;
    using limit = deadline(OPEN_MS, gone);
    const { signal } = limit;
    const transport = upstreamTransport(this.#state, this.#connector, request);
    const serverOf = async (now: SessionRecord) =>
      marked !== undefined && isRunning(marked) ? marked : await this.#serverFor(now);
    const next = async () => await serverOf(await sessions.recordFor(id, user));
    try {
      return await withRoom(
        door,
        { sessionId: id, server: await serverOf(record), next, marked, waitMs: OPEN_MS, signal },
        async (server) => {
          // Read the record only now, under the use marker: gc deletes the record before it looks for use markers.
          const current = await markedRecord(store, server, id, signal);
          if (current === null) throw noSuchSession(id);
          return await load(sessions.context, { record: current, server }, transport, { isNew, signal });
        },
      );
    } catch (error) {
      throw isTimeout(error) ? notOpened(id, error) : error;
    }
  }
}

function notOpened(sessionId: string, cause: unknown): FleetError {
  return new FleetError(
    "FLEET_SERVER_UNREACHABLE",
    `The server did not open session ${quote(sessionId)} within ${OPEN_MS / 1000} s.`,
    { cause, suggestions: ["Try again in a moment.", "copilotfleet ps"] },
  );
}
