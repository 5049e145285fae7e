import { serverIdOf } from "../pool/server.js";
import type { ServerRecord, SessionRecord } from "../store/store.js";
import type { Attachment } from "./attachments.js";
import type { ClientMessage, Params } from "./client-message.js";
import type { ClientSocket } from "./client-socket.js";
import type { DoorContext, DoorEvent, RequestReport } from "./context.js";
import { brokenTurnFrames } from "./events.js";
import { Exchange } from "./exchange.js";
import { ProtocolError } from "./frames.js";
import { FromServers } from "./from-servers.js";
import { type Link, Links } from "./links.js";
import { Opener } from "./opener.js";
import { errorFrame } from "./refusals.js";
import { Requests } from "./requests.js";
import type { TokenHolder } from "./tokens.js";
import { Turns } from "./turns.js";

/** What the clients of one door share. */
export interface DoorServices extends DoorContext {
  /** Starts a server once for all clients that need it at the same time. */
  together: (serverId: string, start: () => Promise<ServerRecord>) => Promise<ServerRecord>;
  /** Calls `reattach` of the client when the server runs again. */
  awaitServer: (server: ServerRecord, client: Client) => void;
  /** Whether no new turns are let in. */
  isDraining: () => boolean;
  onRequest: (report: RequestReport) => void;
  onEvent: (event: DoorEvent) => void;
}

/** A client that asks on and on without taking an answer would fill the memory. */
const MAX_OPEN_REQUESTS = 10_000;

/** An authenticated client: its servers, its sessions, its turns. */
export class Client {
  readonly holder: TokenHolder;
  readonly turns: Turns;
  readonly #door: DoorServices;
  readonly #socket: ClientSocket;
  readonly #exchange: Exchange;
  readonly #links: Links;
  readonly #opener: Opener;
  readonly #requests: Requests;
  readonly #attachments = new Map<string, Attachment>();
  readonly #gone = new AbortController();
  #home: ServerRecord | undefined;

  constructor(door: DoorServices, socket: ClientSocket, holder: TokenHolder, hello: Params) {
    this.#door = door;
    this.#socket = socket;
    this.holder = holder;
    const { user } = holder;
    const { config, store, sessions, pool } = door;
    const context = { config, store, sessions, pool, user };
    const onEvent = (event: Omit<DoorEvent, "address" | "user">) => this.#tell(event);
    this.#exchange = new Exchange(socket, (report) => door.onRequest({ ...report, user }));
    const fromServers = new FromServers({
      client: socket,
      exchange: this.#exchange,
      attachment: (sessionId) => this.#attachments.get(sessionId),
      turn: (sessionId) => this.turns.of(sessionId),
      onEvent,
      onLost: (link) => this.#lose(link),
    });
    this.#links = new Links({ hello, ownServerId: serverIdOf(user), listen: (link) => fromServers.listener(link) });
    const { signal } = this.#gone;
    this.#opener = new Opener({ ...context, links: this.#links, together: door.together, signal });
    this.turns = new Turns({
      ...context,
      exchange: this.#exchange,
      attachment: (sessionId) => this.#attachments.get(sessionId),
      linkFor: async (record) => await this.#linkFor(record),
      unloaded: (sessionId) => this.#unload(sessionId),
      onEvent,
      cut: (sessionId, message) => this.#sendAll(brokenTurnFrames(sessionId, message).slice(0, 1)),
    });
    this.#requests = new Requests({
      ...context,
      exchange: this.#exchange,
      attachments: this.#attachments,
      opener: this.#opener,
      turns: this.turns,
      home: async () => await this.#homeLink(),
      liveLink: (serverId) => this.#links.live(serverId),
      linkFor: async (record) => await this.#linkFor(record),
      unloaded: (sessionId) => this.#unload(sessionId),
      isDraining: door.isDraining,
      onEvent,
    });
  }

  /** Connects to the user's home server. @returns what that says of itself. */
  async greet(): Promise<Params> {
    return (await this.#homeLink()).greeting;
  }

  /** @throws ProtocolError */
  take(message: ClientMessage): void {
    switch (message.kind) {
      case "request":
        if (this.#exchange.open >= MAX_OPEN_REQUESTS) {
          throw new ProtocolError(`More than ${MAX_OPEN_REQUESTS} requests are not answered.`, -32600);
        }
        this.#requests.take(message);
        break;
      case "response":
        if (!this.#exchange.answered(message))
          this.#tell({ event: "dropped", detail: "an answer that nobody waits for" });
        break;
      case "unfit":
        this.#socket.send(errorFrame(message.id, message.rpcCode, message.message));
        this.#tell({ event: "denied", detail: message.message });
        break;
      case "notification":
        // The protocol has none in this direction, and a server may take one for a request.
        if (!message.method.startsWith("$/")) this.#tell({ event: "dropped", detail: "a notification" });
        break;
    }
  }

  /** Nothing more comes from the servers for a while, since the client is slow; or it does again. */
  setFlow(flowing: boolean): void {
    for (const { upstream } of this.#links.all()) {
      if (flowing) upstream.resume();
      else upstream.pause();
    }
  }

  /** The server runs again: what this client had open there is opened again, so that it goes on hearing of it. */
  async reattach(serverId: string): Promise<void> {
    const lost = [...this.#attachments.values()].filter((entry) => entry.serverId === serverId && !entry.attached);
    for (const { record } of lost) {
      if (this.#gone.signal.aborted) return;
      try {
        await this.#linkFor(record);
      } catch (error) {
        // The next request for it says so to the client.
        this.#tell({ event: "failed", sessionId: record.id, detail: String(error) });
      }
    }
  }

  close(): void {
    this.#gone.abort();
    this.turns.close();
    this.#links.close();
  }

  async #homeLink(): Promise<Link> {
    const live = this.#home && this.#links.live(this.#home.id);
    if (live !== undefined) return live;
    // On shared servers a client stays where it was placed first.
    this.#home =
      this.#home === undefined || this.#home.isolation === "per-user"
        ? await this.#opener.homeServer()
        : await this.#opener.again(this.#home);
    return await this.#opener.link(this.#home);
  }

  async #linkFor(record: SessionRecord): Promise<Link> {
    const attachment = this.#attachments.get(record.id);
    const live = this.#links.live(attachment?.serverId ?? record.serverId);
    if (live !== undefined && attachment?.attached !== false) return live;
    if (attachment === undefined) return await this.#opener.link(await this.#opener.serverFor(record));
    attachment.reopening ??= this.#reopen(attachment).finally(() => {
      attachment.reopening = null;
    });
    return await attachment.reopening;
  }

  async #reopen(attachment: Attachment): Promise<Link> {
    const { record } = attachment;
    const turn = this.turns.of(record.id);
    const link = await this.#opener.open({
      // Looked at anew: it may have been deleted, and its id be somebody else's by now.
      record: await this.#door.sessions.recordFor(record.id, this.holder.user),
      asked: { ...attachment.asked, continuePendingWork: undefined },
      isNew: false,
      marked: turn?.active === true ? turn.marked : undefined,
      onLink: ({ server }) => {
        attachment.serverId = server.id;
      },
      onResult: () => {
        attachment.attached = true;
      },
    });
    this.#tell({ event: "session-reopened", sessionId: record.id });
    return link;
  }

  #unload(sessionId: string): void {
    const attachment = this.#attachments.get(sessionId);
    if (attachment !== undefined) attachment.attached = false;
  }

  /** A server has ended, or its connection: nobody waits for it in vain, and what was open there is opened again. */
  #lose(link: Link): void {
    this.#links.forget(link);
    if (this.#gone.signal.aborted) return;
    this.#tell({ event: "server-lost", detail: link.server.id });
    this.#exchange.drop(link);
    let lost = false;
    for (const [id, attachment] of this.#attachments) {
      if (attachment.serverId !== link.server.id || !attachment.attached) continue;
      lost = true;
      attachment.attached = false;
      attachment.permissions.clear();
      if (attachment.inTurn || this.turns.of(id)?.active === true) {
        this.#sendAll(brokenTurnFrames(id, "The server ended during the turn. The session goes on: send it again."));
      }
      attachment.inTurn = false;
      this.turns.of(id)?.end("lost");
    }
    if (lost) this.#door.awaitServer(link.server, this);
  }

  #sendAll(frames: readonly Buffer[]): void {
    for (const frame of frames) this.#socket.send(frame);
  }

  #tell(event: Omit<DoorEvent, "address" | "user">): void {
    this.#door.onEvent({ ...event, address: this.#socket.address, user: this.holder.user });
  }
}
