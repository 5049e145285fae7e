import { deadline, deadlineOn, isTimeout } from "../../base/clock.js";
import { FleetError, isFleetError, quote, type Suggestion } from "../../base/errors.js";
import type { HostRecord } from "../../base/host.js";
import { newSessionId, validateSessionId } from "../../base/ids.js";
import type { ServerRecord } from "../../base/server.js";
import type { SessionRecord } from "../../base/session.js";
import { sessionMoved, userMoved } from "../../servers/directory.js";
import { serverFor } from "../../sessions/use/server.js";
import { type SessionUse, useSession } from "../../sessions/use/use-session.js";
import { recordFor } from "../../sessions/view.js";
import type { Attachment, ClientState } from "../state/client-state.js";
import { isPeerLinkId, type Link, type PeerLink, peerLinkId, type ServerLink } from "../state/links.js";
import type { Params } from "../wire/client-message.js";
import { noSuchSession, serverLost } from "../wire/refusals.js";
import type { Connector } from "./connector.js";
import { type Opening, upstreamTransport } from "./upstream-transport.js";

/**
 * How long it may take to connect to another front door, in milliseconds. That door may have to start a server first.
 */
const PEER_MS = 35_000;

const MOVED =
  "The session moved to another server or host during the turn. It still works there: send the prompt again.";

/**
 * Chooses the link for each request of one client: to a server of this host, or to the front door of another host.
 *
 * A session that the client opened is lost when it is unloaded or moves, or when its link ends. Its {@link Attachment}
 * then has `attached: false`. `reattach` and every request that needs the session open it again:
 *
 * 1. `hostOf` finds the host that has the session now.
 * 2. `linkHere` (this host) or `linkThere` (another host) returns the live link, or opens the session. All callers that
 * need
 * the session at the same time share one opening. `linkThere` sends `session.resume` to the other front door, which
 * does
 *    the rest.
 * 3. `Opener.open` begins a use of the session. During a turn, `Opener.reopen` continues the turn's own use instead.
 * 4. The use (`SessionUse`) finds the server, and `load` chooses between `session.create` and `session.resume`.
 * 5. `upstreamTransport` connects to the server by `Connector.to`, and sends that request. The server then has the
 * session
 *    in memory, and sends its events to the client.
 *
 * `Connector` and `Opener.linkFor` only connect. They never open a session.
 */
export class Router {
  readonly #state: ClientState;
  readonly #connector: Connector;
  readonly #opener: Opener;
  #home: ServerRecord | undefined;

  constructor(state: ClientState, connector: Connector, opener: Opener) {
    this.#state = state;
    this.#connector = connector;
    this.#opener = opener;
  }

  /**
   * The other host that has the session. Null if this host has the session, or has to take it over.
   *
   * @param record the session's current record. Read it right before the call, because the session may move.
   * @throws FleetError `FLEET_SESSION_MOVED` when another host relayed the client here but the session is not here; and
   * the errors of `HostDirectory.whereIs`.
   */
  async hostOf(record: SessionRecord): Promise<HostRecord | null> {
    const { door, isRelayed, attachments } = this.#state;
    const { directory } = door;
    const attachment = attachments.get(record.id);
    const where = await directory.whereIs(record);
    if (where.here) {
      // If the record names an earlier term of this host, the session may have been on another host since then, and the
      // copy in memory here may be old. So detach the client from that copy. `linkHere` then opens the session again.
      if (attachment?.attached === true && !(await directory.has(record))) this.leave(attachment);
      return null;
    }
    if (!isRelayed) return where.host;
    if (attachment !== undefined) this.leave(attachment);
    attachments.delete(record.id);
    throw sessionMoved(record, where.host);
  }

  /**
   * The other host for the user's new sessions and for requests without a session. Null if this host handles them.
   *
   * @throws FleetError `FLEET_SESSION_MOVED` when another host relayed the client here but the user is not placed here;
   * and the errors of `HostDirectory.place`.
   */
  async homeHost(): Promise<HostRecord | null> {
    const { door, user, isRelayed } = this.#state;
    const where = await door.directory.place(user);
    if (where.here) return null;
    if (isRelayed) throw userMoved(user, where.host);
    return where.host;
  }

  async home(): Promise<Link> {
    const host = await this.homeHost();
    return host === null ? await this.homeHere() : await this.peer(host);
  }

  /** The link to the server of this host that handles the client's requests without a session. */
  async homeHere(): Promise<ServerLink> {
    const live = this.#home && this.#state.links.server(this.#home.id);
    if (live !== undefined) return live;
    const { door, gone } = this.#state;
    // A client stays on the shared server on which it was placed first.
    this.#home =
      this.#home === undefined || this.#home.isolation === "per-user"
        ? await this.#opener.homeServer()
        : await door.pool.shared(this.#home.id, { signal: gone, sharedUntil: door.closed });
    return await this.#connector.to(this.#home);
  }

  /** The link to the front door of another host. @throws the errors of `Connector.toPeer`. */
  async peer(host: HostRecord): Promise<PeerLink> {
    using limit = deadline(PEER_MS, this.#state.gone);
    return await this.#connector.toPeer(host, limit.signal);
  }

  /**
   * The link to the session's server on this host. If the client opened the session and lost it, opens it again there:
   * during a turn as a part of the turn's use, otherwise in a separate use. If the client never opened the session,
   * only connects.
   *
   * @throws FleetError `FLEET_SESSION_MOVED` when another host has the session; and the errors of `Opener.open`.
   */
  async linkHere(record: SessionRecord): Promise<ServerLink> {
    const { links, attachments } = this.#state;
    const attachment = attachments.get(record.id);
    if (attachment === undefined) return await this.#opener.linkFor(record);
    if (isPeerLinkId(attachment.linkId)) this.#bring(attachment, record.serverId);
    const live = links.server(attachment.linkId);
    if (live !== undefined && attachment.attached) return live;
    const link = await this.#reopened(attachment, async () => await this.#openHere(attachment));
    if (link.kind === "peer") throw sessionMoved(record, link.host);
    return link;
  }

  /**
   * The link to the front door of the session's host. If the client opened the session and lost it, opens it again
   * there.
   *
   * @throws FleetError `FLEET_SESSION_MOVED` when another request opened the session elsewhere at the same time; the
   * errors of {@link peer}; `RpcError` when that front door refuses the client.
   */
  async linkThere(record: SessionRecord, host: HostRecord): Promise<PeerLink> {
    const { links, attachments } = this.#state;
    const attachment = attachments.get(record.id);
    if (attachment === undefined) return await this.peer(host);
    const id = peerLinkId(host);
    if (attachment.linkId !== id) this.#bring(attachment, id);
    const live = links.live(id);
    if (live?.kind === "peer" && attachment.attached) return live;
    const link = await this.#reopened(attachment, async () => await this.#openThere(attachment, host));
    if (link.kind === "server" || link.id !== id) throw sessionMoved(record, null);
    return link;
  }

  /** Opens the session again on whichever host has it, so that the client receives its events again. */
  async reattach({ sessionId }: Attachment): Promise<void> {
    const { door, user } = this.#state;
    const record = await recordFor(door, sessionId, user);
    const host = await this.hostOf(record);
    if (host === null) await this.linkHere(record);
    else await this.linkThere(record, host);
  }

  /**
   * Detaches the client from the session, on the link on which it was last opened, and sends the client the end of a
   * running turn.
   */
  leave(attachment: Attachment): void {
    const link = this.#state.links.live(attachment.linkId);
    this.#state.cut(attachment, MOVED);
    if (!attachment.attached) return;
    attachment.attached = false;
    attachment.heard = false;
    // Do not wait for the answer, because the session may no longer be there.
    link?.upstream.request("session.detach", { sessionId: attachment.sessionId }).catch(() => "it has gone");
  }

  #bring(attachment: Attachment, linkId: string): void {
    this.leave(attachment);
    attachment.linkId = linkId;
  }

  /** The first caller opens the session. Later callers wait for the same opening. */
  async #reopened(attachment: Attachment, open: () => Promise<Link>): Promise<Link> {
    attachment.reopening ??= open().finally(() => {
      attachment.reopening = null;
    });
    return await attachment.reopening;
  }

  async #openHere(attachment: Attachment): Promise<ServerLink> {
    const { door, user, turns, report } = this.#state;
    const { sessionId } = attachment;
    const turn = turns.get(sessionId);
    const opening: Opening = {
      asked: askedAgain(attachment),
      onLink: ({ id }) => {
        attachment.linkId = id;
        attachment.heard = true;
      },
      onResult: (_, link) => this.#state.attach(attachment, link),
    };
    let link: ServerLink;
    try {
      // During a turn, open the session as part of the turn's use. Otherwise read the record again, because the session
      // may have been deleted, and another user may have its id now.
      link =
        turn?.use !== undefined && turn.over === null
          ? await this.#opener.reopen(turn.use, opening)
          : await this.#opener.open(await recordFor(door, sessionId, user), opening);
    } catch (error) {
      attachment.heard = attachment.attached;
      throw error;
    }
    door.opened(sessionId, this.#state);
    report.event({ event: "session-reopened", sessionId });
    return link;
  }

  async #openThere(attachment: Attachment, host: HostRecord): Promise<PeerLink> {
    const { sessionId } = attachment;
    const link = await this.peer(host);
    attachment.linkId = link.id;
    const params = { ...askedAgain(attachment), sessionId };
    await link.upstream.request("session.resume", params, () => this.#state.attach(attachment, link));
    if (link.upstream.closed) throw serverLost("the session was opened");
    this.#state.report.event({ event: "session-reopened", sessionId, detail: `on host ${host.name}` });
    return link;
  }
}

function askedAgain({ asked }: Attachment) {
  return { ...asked, continuePendingWork: undefined };
}

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

  /**
   * The server for requests without a session: the user's own server, or the shared server that the user is placed on.
   */
  async homeServer(): Promise<ServerRecord> {
    const { door, user, gone } = this.#state;
    return await door.sessions.serverForNew({ user, signal: gone, sharedUntil: door.closed });
  }

  /**
   * Records a new session for the user, before anything else uses its id.
   *
   * @throws FleetError `FLEET_USAGE_INVALID`, and the errors of `Sessions.recordNew`.
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
   * @throws FleetError `FLEET_SESSION_NOT_FOUND`, `FLEET_SESSION_LOST`, `FLEET_LIMIT_REACHED`, `FLEET_METHOD_DENIED`;
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
