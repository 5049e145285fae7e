import { FleetError, isFleetError, quote, type Suggestion } from "../../errors.js";
import { newSessionId, validateSessionId } from "../../model/ids.js";
import type { ServerRecord } from "../../model/server.js";
import type { SessionRecord } from "../../model/session.js";
import { deadlineOn, isTimeout } from "../../runtime/clock.js";
import { serverFor } from "../../sessions/use/server.js";
import { type SessionUse, useSession } from "../../sessions/use/use-session.js";
import type { ClientState } from "../state/client-state.js";
import type { ServerLink } from "../state/links.js";
import type { Params } from "../wire/client-message.js";
import { noSuchSession } from "../wire/refusals.js";
import type { Connector } from "./connector.js";
import { type Opening, upstreamTransport } from "./upstream-transport.js";

/** How long a server may take to start, and how long it may take to open a session, in milliseconds. */
export const OPEN_MS = 30_000;

/**
 * Finds or starts the servers of one client on this host, and opens the client's sessions there. {@link Router} shows
 * the order of the steps.
 */
export class Opener {
  readonly #state: ClientState;
  readonly #connector: Connector;

  constructor(state: ClientState, connector: Connector) {
    this.#state = state;
    this.#connector = connector;
  }

  /** Connects to the server that has a session, and starts the server if it does not run. Does not open the session. */
  async linkFor(record: SessionRecord): Promise<ServerLink> {
    const { links, door, user, gone } = this.#state;
    const live = (await door.directory.has(record)) ? links.server(record.serverId) : undefined;
    if (live !== undefined) return live;
    using limit = deadlineOn(door.clock, OPEN_MS, gone);
    const options = { user, signal: limit.signal, sharedUntil: door.closed };
    return await this.#connector.to(await serverFor(door.sessions.context, record, options));
  }

  /** The server for requests without a session: the user's own server, or the shared server that the user is placed on. */
  async homeServer(): Promise<ServerRecord> {
    const { door, user, gone } = this.#state;
    return await door.sessions.serverForNew({ user, signal: gone, sharedUntil: door.closed });
  }

  /**
   * Records a new session for the user, before anything else uses its id.
   *
   * @throws FleetError `FLEET_SESSION_ID_INVALID`, and the errors of `Sessions.recordNew`.
   */
  async recordNew(asked: Params): Promise<SessionRecord> {
    const { user, door, gone } = this.#state;
    const given = asked.sessionId ?? null;
    const id = given === null ? newSessionId() : validateSessionId(String(given), "sessionId");
    const model = typeof asked.model === "string" ? asked.model : null;
    return await door.sessions.recordNew({ id, owner: user, model }, { signal: gone, sharedUntil: door.closed });
  }

  /**
   * Loads a session into its server's memory for this client, if `session.maxActive` allows one more session there.
   *
   * @param isNew whether the session was just recorded, so that no disk can have any state of it
   * @throws FleetError `FLEET_SESSION_NOT_FOUND`, `FLEET_SESSION_LOST`, `FLEET_SESSIONS_EXHAUSTED`, `FLEET_METHOD_DENIED`;
   * `FLEET_SERVER_UNREACHABLE` when the server takes too long; the errors of `Pool.serverOf`; and `RpcError` with the
   * server's refusal.
   */
  async open(record: SessionRecord, opening: Opening, isNew = false): Promise<ServerLink> {
    const { door, user, gone } = this.#state;
    using limit = deadlineOn(door.clock, OPEN_MS, gone);
    const request = { record, user, isTurn: false, waitMs: OPEN_MS, signal: limit.signal, sharedUntil: door.closed };
    return await translated(record.id, async () => {
      await using use = await useSession(door.sessions.context, request);
      // Do not retry a failed creation. `SessionCalls.create` frees the id, so the client itself can try again.
      const transport = upstreamTransport(this.#state, this.#connector, opening);
      const link = await use.open(transport, { isNew, isOnce: isNew });
      await door.sessions.recordModel(record, opening.asked.model);
      return link;
    });
  }

  /** Loads a session again during a turn of this client, as a part of the turn's own use of the session. */
  async reopen(use: SessionUse, opening: Opening): Promise<ServerLink> {
    const transport = upstreamTransport(this.#state, this.#connector, opening);
    return await translated(use.record.id, async () => await use.reopen(transport));
  }
}

/**
 * Replaces `FLEET_SESSION_NOT_FOUND` with {@link noSuchSession}, whose text clients check for, and a timeout with
 * `FLEET_SERVER_UNREACHABLE`.
 */
async function translated<T>(sessionId: string, open: () => Promise<T>): Promise<T> {
  try {
    return await open();
  } catch (error) {
    if (isFleetError(error, "FLEET_SESSION_NOT_FOUND")) throw noSuchSession(sessionId);
    if (!isTimeout(error)) throw error;
    const message = `The server did not open session ${quote(sessionId)} within ${OPEN_MS / 1000} s.`;
    const suggestions: Suggestion[] = ["Try again in a moment.", "copilotfleet ps"];
    throw new FleetError("FLEET_SERVER_UNREACHABLE", message, { cause: error, suggestions });
  }
}
