import { setTimeout as delay } from "node:timers/promises";
import { isFleetError } from "../../errors.js";
import type { TokenHolder } from "../../identity/tokens.js";
import type { HostRecord } from "../../model/host.js";
import type { ServerRecord } from "../../model/server.js";
import { serverIdOf } from "../../pool/server.js";
import { ProtocolError } from "../../runtime/wire/frames.js";
import type { Protocol } from "../policy/protocols.js";
import { Links } from "../routing/links.js";
import { Opener } from "../routing/opener.js";
import type { PeerDialer } from "../routing/peers.js";
import { Routes } from "../routing/routes.js";
import { type Attachment, ownTools } from "../state/attachments.js";
import type { DoorContext, Together } from "../state/door/door-state.js";
import type { DoorEvent, RequestReport } from "../state/door/report.js";
import { failure } from "../state/door/report.js";
import type { SessionRequests } from "../state/door/server-questions.js";
import type { Share } from "../state/door/shares.js";
import { isPeerLinkId, type Link } from "../state/links.js";
import { OpenRequests } from "../state/open-requests.js";
import { TurnEnds } from "../state/turn-ends.js";
import { Turns } from "../turns/turns.js";
import type { ClientMessage, Params } from "../wire/client-message.js";
import type { ClientSocket } from "../wire/client-socket.js";
import { brokenTurnFrames } from "../wire/events.js";
import { clientGone, errorFrame, SERVER_ENDED } from "../wire/refusals.js";
import { FromServers } from "./from-servers.js";
import { Requests } from "./requests.js";

/** The parts of the door that all its clients share. */
export interface DoorServices extends DoorContext {
  /** Starts a server only once for all clients that need it at the same time. */
  together: Together;
  /** Calls the client's `reattach` when the server runs again. */
  awaitServer: (server: ServerRecord, client: Client) => void;
  /** Calls the client's `reattach` when the sessions of that host are available again, there or on another host. */
  awaitHost: (host: HostRecord, client: Client) => void;
  /** Ends this launch of a server, which is of no use because the client that answered its model requests has gone. */
  endServer: (server: ServerRecord, client: Client) => void;
  /** Called when this client has opened the session on a server here. */
  opened: (sessionId: string, client: Client) => void;
  /** The requests that servers made in the sessions that clients have open. */
  sessionRequests: SessionRequests;
  /** The users of the other clients that brought a tool with that name to the session. */
  bringers: (sessionId: string, tool: string, except: Client) => string[];
  /** Resolves when the next prompt may begin, or the next session may be opened. */
  pace: () => Promise<void>;
  /** Whether the door lets no new turns begin. */
  isDraining: () => boolean;
  onRequest: (report: RequestReport) => void;
  onEvent: (event: DoorEvent) => void;
}

/** Where a client comes from, and how it reaches other hosts. */
export interface ClientOrigin {
  /** The parameters of its `connect`, without `token` and `fleet`. */
  hello: Params;
  /** The protocol that the client speaks. */
  protocol: Protocol;
  /** The host whose front door relays the client; undefined if it connected here directly. */
  via: string | undefined;
  /** Null if the client is not relayed any further. */
  peers: PeerDialer | null;
  /** The part of its user's limits that it takes up. */
  share: Share;
}

/** A client that keeps sending requests without reading the answers would fill the memory. */
const MAX_OPEN_REQUESTS = 10_000;

/** How often we check whether turns on other hosts are over, in milliseconds. */
const SETTLED_POLL_MS = 50;

/** An authenticated client, with its servers, sessions and turns. */
export class Client {
  readonly holder: TokenHolder;
  readonly turns: Turns;
  readonly #door: DoorServices;
  readonly #socket: ClientSocket;
  readonly #ends: TurnEnds;
  readonly #openRequests: OpenRequests;
  readonly #links: Links;
  readonly #routes: Routes;
  readonly #requests: Requests;
  readonly #attachments = new Map<string, Attachment>();
  readonly #gone = new AbortController();
  readonly #isRelayed: boolean;
  readonly #protocol: Protocol;
  /** The server that this client has set up for itself. The client's connection ends with it: see `server-setup.ts`. */
  #boundTo: Link | undefined;
  /** The server whose model requests this client answers. */
  #needing: ServerRecord | undefined;

  constructor(
    door: DoorServices,
    socket: ClientSocket,
    holder: TokenHolder,
    { hello, protocol, via, peers, share }: ClientOrigin,
  ) {
    this.#door = door;
    this.#socket = socket;
    this.holder = holder;
    this.#isRelayed = via !== undefined;
    this.#protocol = protocol;
    const { user, lease } = holder;
    const { config, store, sessions, pool, directory } = door;
    const { signal } = this.#gone;
    const attachments = this.#attachments;
    const attachment = (sessionId: string) => attachments.get(sessionId);
    const turn = (sessionId: string) => this.turns.of(sessionId);
    const context = { config, store, sessions, pool, directory, user, protocol, signal, relayed: this.#isRelayed };
    const onEvent = (event: Omit<DoorEvent, "address" | "user">) => this.tell(event);
    this.#ends = new TurnEnds(socket, { isRelayed: this.#isRelayed });
    this.#openRequests = new OpenRequests(
      socket,
      this.#ends,
      (report) => door.onRequest({ ...report, user }),
      share,
      protocol,
    );
    const fromServers = new FromServers({
      config,
      client: socket,
      openRequests: this.#openRequests,
      ends: this.#ends,
      sessionRequests: door.sessionRequests,
      attachment,
      turn,
      deleted: (sessionId) => void attachments.delete(sessionId),
      onEvent,
      onLost: (link) => this.#lose(link),
    });
    const listen = (link: () => Link | undefined) => fromServers.listener(link);
    this.#links = new Links({ hello, protocol, ownServerId: serverIdOf(user), peers, listen });
    const opener = new Opener({ ...context, links: this.#links, together: door.together });
    const cut = (entry: Attachment, message: string) => this.#cut(entry, message);
    const opened = (sessionId: string) => door.opened(sessionId, this);
    this.#routes = new Routes({ ...context, links: this.#links, opener, attachments, turn, cut, opened, onEvent });
    this.turns = new Turns({
      ...context,
      lease,
      openRequests: this.#openRequests,
      ends: this.#ends,
      attachment,
      linkFor: async (record) => await this.#routes.local(record),
      refuse: (request, error) => this.#requests.refuse(request, error),
      isDraining: door.isDraining,
      unloaded: (sessionId) => this.#unload(sessionId),
      onEvent,
      cut: (sessionId, message) => this.#sendAll(brokenTurnFrames(sessionId, message).slice(0, 1)),
    });
    this.#requests = new Requests({
      ...context,
      share,
      openRequests: this.#openRequests,
      sessionRequests: door.sessionRequests,
      bringers: (sessionId, tool) => door.bringers(sessionId, tool, this),
      attachments,
      opened,
      left: (sessionId) => {
        this.#ends.over(sessionId);
        this.turns.of(sessionId)?.unheard();
      },
      lost: (sessionId) => this.turns.of(sessionId)?.interrupted("lost"),
      opener,
      links: this.#links,
      routes: this.#routes,
      turns: this.turns,
      unloaded: (sessionId) => this.#unload(sessionId),
      boundTo: (link, needsItsClient) => {
        this.#boundTo = link;
        if (needsItsClient) this.#needing = link.server;
      },
      pace: door.pace,
      isDraining: door.isDraining,
      lease,
      onEvent,
    });
  }

  /** Connects to the user's home, on whichever host it is. @returns the answer to `connect` from there. */
  async greet(): Promise<Params> {
    const { directory } = this.#door;
    // The client was relayed here for a session, and its user's home is on another host. Start no server for that.
    if (this.#isRelayed && !(await directory.place(this.holder.user)).here)
      return { protocolVersion: this.#protocol.version };
    return (await this.#routes.home()).greeting;
  }

  /** Whether this client has the session open, and brought a tool with that name to it. */
  brings(sessionId: string, tool: string): boolean {
    const attachment = this.#attachments.get(sessionId);
    return attachment !== undefined && ownTools(attachment).has(tool);
  }

  /** How many turns are running or waiting, here and on other hosts. */
  get inTurns(): number {
    return this.turns.size + this.#relayedTurns();
  }

  /** Resolves when no turn is running or waiting. @throws when the signal aborts. */
  async settled(signal: AbortSignal): Promise<void> {
    await this.turns.settled();
    while (this.#relayedTurns() > 0) await delay(SETTLED_POLL_MS, undefined, { signal });
  }

  #relayedTurns(): number {
    const relayed = [...this.#attachments.values()].filter(({ linkId, inTurn }) => inTurn && isPeerLinkId(linkId));
    return relayed.length;
  }

  /** @throws ProtocolError when too many requests are unanswered. */
  take(message: ClientMessage): void {
    switch (message.kind) {
      case "request":
        if (this.#openRequests.open >= MAX_OPEN_REQUESTS) {
          throw new ProtocolError(`The connection has more than ${MAX_OPEN_REQUESTS} unanswered requests.`, -32600);
        }
        this.#requests.take(message);
        break;
      case "response":
        if (!this.#ends.read(message.id) && !this.#openRequests.answered(message))
          this.tell({ event: "dropped", detail: "an answer to no open request" });
        break;
      case "unfit":
        this.#socket.send(errorFrame(message.id, message.rpcCode, message.message));
        this.tell({ event: "denied", detail: message.message });
        break;
      case "notification":
        // The protocol has no notifications from clients, and a server may take one for a request.
        if (!message.method.startsWith("$/")) this.tell({ event: "dropped", detail: "a notification" });
        break;
    }
  }

  /** Stops reading from the servers because the client is slow (false), or reads again (true). */
  setFlow(flowing: boolean): void {
    for (const { upstream } of this.#links.all()) {
      if (flowing) upstream.resume();
      else upstream.pause();
    }
  }

  /**
   * Reopens the sessions that this client lost, so that it gets their events again. Call this when their server or host is
   * there again.
   *
   * @param lost the id of the link on which the client had the sessions open; undefined: any server of this host
   */
  async reattach(lost?: string): Promise<void> {
    const isLost = ({ linkId, attached }: Attachment) =>
      !attached && (lost === undefined ? !isPeerLinkId(linkId) : linkId === lost);
    for (const attachment of [...this.#attachments.values()].filter(isLost)) await this.#reattach(attachment);
  }

  /** Another client has loaded the session again. Reopens it for this client too, if it had it open. Never rejects. */
  async follow(sessionId: string): Promise<void> {
    const attachment = this.#attachments.get(sessionId);
    if (attachment === undefined || attachment.attached || attachment.heard || attachment.reopening !== null) return;
    await this.#reattach(attachment);
  }

  /** Never rejects. */
  async #reattach(attachment: Attachment): Promise<void> {
    if (this.#gone.signal.aborted) return;
    try {
      await this.#routes.reattach(attachment);
    } catch (error) {
      // The session was deleted while the client did not have it open. Another user may have its id by now.
      if (isFleetError(error, "FLEET_SESSION_NOT_FOUND")) this.#forget(attachment);
      // The client gets the error as the answer to its next request for the session.
      else if (!this.#gone.signal.aborted)
        this.tell({ event: "failed", sessionId: attachment.sessionId, ...failure(error) });
    }
  }

  /** Does nothing if the client has opened another session with that id since then. */
  #forget(attachment: Attachment): void {
    const { sessionId } = attachment;
    if (this.#attachments.get(sessionId) === attachment) this.#attachments.delete(sessionId);
  }

  /** Hangs up on the servers of this host. That cuts the turns in them, and they unload the sessions. */
  leaveServers(): void {
    for (const { kind, upstream } of this.#links.all()) if (kind === "server") upstream.destroy();
  }

  /** Whether the client is connected to other hosts, or about to be. */
  get hasPeers(): boolean {
    return this.#links.hasPeers;
  }

  /** Hangs up on other hosts that have gone. @param there the ids of the links to hosts that have not */
  hangUp(there: ReadonlySet<string>): void {
    this.#links.hangUp((linkId) => there.has(linkId));
  }

  close(): void {
    this.#gone.abort(clientGone());
    this.#openRequests.close();
    this.turns.close();
    this.#links.close();
    if (this.#needing !== undefined) this.#door.endServer(this.#needing, this);
    this.#needing = undefined;
  }

  #unload(sessionId: string): void {
    const attachment = this.#attachments.get(sessionId);
    if (attachment === undefined) return;
    attachment.attached = false;
    attachment.heard = false;
  }

  /**
   * A server, another host, or the connection to it has ended. Answers all that waits for it, and asks the door to call
   * `reattach` for the sessions that were open there.
   */
  #lose(link: Link): void {
    this.#links.forget(link);
    if (this.#gone.signal.aborted) return;
    this.tell({ event: link.kind === "peer" ? "host-lost" : "server-lost", detail: link.id });
    const goOn = this.turns.lose(link);
    this.#openRequests.drop(link);
    if (this.#boundTo === link) {
      this.#socket.end();
      return;
    }
    let lost = false;
    for (const [id, attachment] of this.#attachments) {
      if (attachment.linkId !== link.id || !attachment.attached) continue;
      lost = true;
      attachment.attached = false;
      attachment.heard = false;
      if (goOn.has(id)) {
        attachment.inTurn = false;
        continue;
      }
      this.#cut(attachment, SERVER_ENDED);
      this.turns.of(id)?.interrupted("lost");
    }
    if (lost && link.kind === "server") this.#door.awaitServer(link.server, this);
    if (lost && link.kind === "peer") this.#door.awaitHost(link.host, this);
  }

  /** The server sends no more events of the session's turn, so the door sends the client the end of the turn. */
  #cut(attachment: Attachment, message: string): void {
    const { sessionId, inTurn } = attachment;
    const turn = this.turns.of(sessionId);
    // A prompt that still waits for its turn loses nothing. If its client got the end of another turn, it would believe that
    // its own turn had ended.
    if (turn?.active === true) this.#ends.cut(sessionId, message);
    else if (inTurn) this.#ends.cutOther(sessionId, message);
    attachment.inTurn = false;
    if (turn?.active === true) turn.end("lost");
  }

  #sendAll(frames: readonly Buffer[]): void {
    for (const frame of frames) this.#socket.send(frame);
  }

  /** Reports an event of this client to the owner of the door. */
  tell(event: Omit<DoorEvent, "address" | "user">): void {
    this.#door.onEvent({ ...event, address: this.#socket.address, user: this.holder.user });
  }
}
