import { sessionMoved, userMoved } from "../hosts/problems.js";
import { deadline } from "../runtime/deadline.js";
import type { HostRecord, ServerRecord, SessionRecord } from "../store/store.js";
import type { Attachment } from "./attachments.js";
import type { DoorContext, DoorEvent } from "./context.js";
import { isPeerLinkId, type Link, type Links, type PeerLink, peerLinkId, type ServerLink } from "./links.js";
import type { Opener } from "./opener.js";
import { serverLost } from "./refusals.js";
import type { Turn } from "./turn.js";

export interface RoutesContext extends DoorContext {
  user: string;
  /** The client came from the front door of another host: it gets what is here, and is relayed no further. */
  relayed: boolean;
  links: Links;
  opener: Opener;
  attachments: Map<string, Attachment>;
  turn: (sessionId: string) => Turn | undefined;
  /** Tells the client that the turn which the session is in, if it is in one, has come to nothing. */
  cut: (attachment: Attachment, message: string) => void;
  /** The client has the session open again, on a server here. */
  opened: (sessionId: string) => void;
  onEvent: (event: Omit<DoorEvent, "address" | "user">) => void;
  /** Aborts when the client has gone. */
  signal: AbortSignal;
}

/** How long another host's front door may take to be connected to, and to start a server for it, in milliseconds. */
const PEER_MS = 35_000;

const MOVED = "The session was taken elsewhere during the turn. It goes on there: send it again.";

/** Where one client's requests go: to a server of this host, or to the front door of the host that has what they are about. */
export class Routes {
  readonly #context: RoutesContext;
  #home: ServerRecord | undefined;

  constructor(context: RoutesContext) {
    this.#context = context;
  }

  /**
   * The other host that has the session; null: it is on this one, or is to be. The record has to be fresh.
   *
   * @throws FleetError `FLEET_SESSION_MOVED` when the client was relayed here in vain; and as `HostDirectory.whereIs`.
   */
  async hostOf(record: SessionRecord): Promise<HostRecord | null> {
    const { directory, relayed, attachments } = this.#context;
    const attachment = attachments.get(record.id);
    const where = await directory.whereIs(record);
    if (where.here) {
      // Not this host's as it stands, since its term is another: what is in memory is not to be gone on with.
      if (attachment?.attached === true && !(await directory.has(record))) this.leave(attachment);
      return null;
    }
    if (!relayed) return where.host;
    if (attachment !== undefined) this.leave(attachment);
    attachments.delete(record.id);
    throw sessionMoved(record, where.host);
  }

  /** The same for what is about no session, and for new ones. @throws FleetError; as `HostDirectory.place`. */
  async homeHost(): Promise<HostRecord | null> {
    const { directory, user, relayed } = this.#context;
    const where = await directory.place(user);
    if (where.here) return null;
    if (relayed) throw userMoved(user, where.host);
    return where.host;
  }

  async home(): Promise<Link> {
    const host = await this.homeHost();
    return host === null ? await this.homeHere() : await this.peer(host);
  }

  /** The server here for what is about no session. */
  async homeHere(): Promise<ServerLink> {
    const { links, opener } = this.#context;
    const live = this.#home && links.server(this.#home.id);
    if (live !== undefined) return live;
    // On shared servers a client stays where it was placed first.
    this.#home =
      this.#home === undefined || this.#home.isolation === "per-user"
        ? await opener.homeServer()
        : await opener.again(this.#home);
    return await opener.link(this.#home);
  }

  /** The front door of that host. @throws as `Links.toPeer`. */
  async peer(host: HostRecord): Promise<PeerLink> {
    using limit = deadline(PEER_MS, this.#context.signal);
    return await this.#context.links.toPeer(host, limit.signal);
  }

  /**
   * The session's server here, with the session loaded for this client if the client opened it.
   *
   * @throws FleetError `FLEET_SESSION_MOVED` when another host has it; and as `Opener.open`.
   */
  async local(record: SessionRecord): Promise<ServerLink> {
    const { links, opener, attachments, directory } = this.#context;
    const attachment = attachments.get(record.id);
    if (attachment === undefined) {
      const near = links.server(record.serverId);
      return near !== undefined && (await directory.has(record))
        ? near
        : await opener.link(await opener.serverFor(record));
    }
    if (isPeerLinkId(attachment.linkId)) this.#bring(attachment, record.serverId);
    const live = links.server(attachment.linkId);
    if (live !== undefined && attachment.attached) return live;
    const link = await this.#reopened(attachment, async () => await this.#openHere(attachment));
    if (link.kind === "peer") throw sessionMoved(record, link.host);
    return link;
  }

  /** The same at the host that has it. @throws FleetError as {@link peer}; `RpcError` with what it was refused with there. */
  async remote(record: SessionRecord, host: HostRecord): Promise<PeerLink> {
    const { links, attachments } = this.#context;
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

  /** The session is opened anew, wherever it is: its client goes on hearing of it. */
  async reattach({ sessionId }: Attachment): Promise<void> {
    const { sessions, user } = this.#context;
    const record = await sessions.recordFor(sessionId, user);
    const host = await this.hostOf(record);
    if (host === null) await this.local(record);
    else await this.remote(record, host);
  }

  /** The client has nothing to do any more with the session where it was opened last. */
  leave(attachment: Attachment): void {
    const { links, cut } = this.#context;
    const link = links.live(attachment.linkId);
    cut(attachment, MOVED);
    if (!attachment.attached) return;
    attachment.attached = false;
    attachment.heard = false;
    // As far as it is there yet: nobody waits for that.
    link?.upstream.request("session.detach", { sessionId: attachment.sessionId }).catch(() => "it has gone");
  }

  #bring(attachment: Attachment, linkId: string): void {
    this.leave(attachment);
    attachment.linkId = linkId;
  }

  /** Whoever needs it first opens it, for all. */
  async #reopened(attachment: Attachment, open: () => Promise<Link>): Promise<Link> {
    attachment.reopening ??= open().finally(() => {
      attachment.reopening = null;
    });
    return await attachment.reopening;
  }

  async #openHere(attachment: Attachment): Promise<ServerLink> {
    const { opener, sessions, user, onEvent } = this.#context;
    const { sessionId } = attachment;
    const turn = this.#context.turn(sessionId);
    // Looked at anew: it may have been deleted, and its id be somebody else's by now.
    const record = await sessions.recordFor(sessionId, user);
    let link: ServerLink;
    try {
      link = await opener.open({
        record,
        asked: askedAgain(attachment),
        isNew: false,
        marked: turn?.active === true ? turn.marked : undefined,
        onLink: ({ id }) => {
          attachment.linkId = id;
          attachment.heard = true;
        },
        onResult: () => {
          attachment.attached = true;
        },
      });
    } catch (error) {
      attachment.heard = attachment.attached;
      throw error;
    }
    this.#context.opened(sessionId);
    onEvent({ event: "session-reopened", sessionId });
    return link;
  }

  async #openThere(attachment: Attachment, host: HostRecord): Promise<PeerLink> {
    const { sessionId } = attachment;
    const link = await this.peer(host);
    attachment.linkId = link.id;
    const params = { ...askedAgain(attachment), sessionId };
    await link.upstream.request("session.resume", params, () => {
      attachment.attached = true;
    });
    if (link.upstream.closed) throw serverLost("the session was opened");
    this.#context.onEvent({ event: "session-reopened", sessionId, detail: `on host ${host.name}` });
    return link;
  }
}

function askedAgain({ asked }: Attachment) {
  return { ...asked, continuePendingWork: undefined };
}
