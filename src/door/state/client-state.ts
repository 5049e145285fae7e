import { abortable, deadlineOn, pause } from "../../base/clock.js";
import type { ServerRecord } from "../../base/server.js";
import type { Identity } from "../../identity/identity.js";
import { loadIdentity } from "../../runtime/history/session-state.js";
import { namesPrompts } from "../../runtime/launch/versions.js";
import type { Protocol } from "../policy/methods.js";
import { toolsIn } from "../policy/reach.js";
import type { Params } from "../wire/client-message.js";
import type { ClientSocket } from "../wire/client-socket.js";
import { brokenTurnFrames, shutdownFrame } from "../wire/events.js";
import { clientGone } from "../wire/refusals.js";
import type { DoorClient, DoorState } from "./door-state.js";
import { isPeerLinkId, type Link, Links, Mailbox, RequestLines, type ServerLink } from "./links.js";
import { OpenRequests, ReadReceipts } from "./open-requests.js";
import type { Reporter } from "./report.js";
import type { Share } from "./shares.js";
import { type Turn, TurnEnds } from "./turn.js";

/** How often to check whether the client's turns are over and its requests are answered, in milliseconds. */
const SETTLED_POLL_MS = 50;
/** How long the door waits for a client to read what it was sent before the door hangs up, in milliseconds. */
const READ_MS = 5_000;

/**
 * A session that this client opened, on this host or on another one. It has everything that is needed to open the
 * session again.
 */
export interface Attachment {
  readonly sessionId: string;
  /** The id of the link on which the session was last opened: to a server, or to another host's front door. */
  linkId: string;
  /** The parameters with which the client opened the session, without those that the fleet adds. */
  asked: Params;
  /** Whether the other end of the link `linkId` has the session open for this client, as far as we know. */
  attached: boolean;
  /**
   * Identifies the load that the client is attached to. Each time that a server loads the session again, a new load
   * begins. Null if unknown.
   */
  load: string | null;
  /** The last `load` whose end {@link ClientState.noticeUnloads} has found. Null if it has found none. */
  endedLoad: string | null;
  /**
   * Whether `session.lifecycle` events with this session id are about this session. False once the session is unloaded,
   * because another user's session may then get the id, and a server sends these events to all clients.
   */
  heard: boolean;
  /** Whether the session's events show that a turn runs in it, whoever began the turn. */
  inTurn: boolean;
  /** Whether this client has approved more than single tool calls. */
  approves: boolean;
  /** Set while a request reopens the session. Other requests that need the session wait for this promise. */
  reopening: Promise<Link> | null;
}

export function newAttachment(sessionId: string, linkId: string, asked: Params): Attachment {
  return {
    sessionId,
    linkId,
    asked,
    attached: false,
    load: null,
    endedLoad: null,
    heard: false,
    inTurn: false,
    approves: false,
    reopening: null,
  };
}

/** Whether the client chose the folder for the session's state (`configDir`). */
export function hasOwnFolder({ configDir }: Params): boolean {
  return configDir !== undefined && configDir !== null;
}

const UNLOADED = "The session was unloaded during the turn. The session still works: send the prompt again.";

/** The identity of a client, and how it has connected. */
export interface ClientOrigin {
  identity: Identity;
  protocol: Protocol;
  /** The part of the user's limits that this client takes up. */
  share: Share;
  report: Reporter;
  /** Whether another front door relays the client. The client then gets only sessions of this host. */
  isRelayed: boolean;
}

/**
 * The state of one client: its connections, sessions, turns and requests. The parts of the door that work for the
 * client share it.
 */
export class ClientState implements DoorClient {
  readonly door: DoorState;
  readonly socket: ClientSocket;
  readonly identity: Identity;
  readonly protocol: Protocol;
  readonly share: Share;
  readonly report: Reporter;
  readonly isRelayed: boolean;
  readonly attachments = new Map<string, Attachment>();
  /** The client's turns that run or wait, by session. */
  readonly turns = new Map<string, Turn>();
  readonly links = new Links();
  readonly lines: RequestLines;
  readonly requests: OpenRequests;
  readonly ends: TurnEnds;
  readonly receipts: ReadReceipts;
  /** Sessions to open again, so that the client gets their events. */
  readonly unopened = new Mailbox<readonly Attachment[]>();
  /**
   * The link to the server that this client has set up. The client's connection ends with that server: see
   * `checkSetup` in `policy/settings.ts`.
   */
  boundTo: Link | undefined;
  /** The server whose model requests this client answers. The server ends with the client. */
  needing: ServerRecord | undefined;
  readonly #gone = new AbortController();
  /**
   * For each session that the client has open on a server of this host: keeps the session's model-gateway token valid
   * until it is disposed.
   */
  readonly #kept = new Map<string, Disposable>();

  constructor(door: DoorState, socket: ClientSocket, { identity, protocol, share, report, isRelayed }: ClientOrigin) {
    this.door = door;
    this.socket = socket;
    this.identity = identity;
    this.protocol = protocol;
    this.share = share;
    this.report = report;
    this.isRelayed = isRelayed;
    this.lines = new RequestLines({ looksAgain: !isRelayed });
    this.receipts = new ReadReceipts(socket, { isRelayed });
    this.ends = new TurnEnds(socket, this.receipts);
    this.requests = new OpenRequests(this);
  }

  get user(): string {
    return this.identity.user;
  }

  /** Aborts when the client has gone. Work for the client then ends with the signal's reason. */
  get gone(): AbortSignal {
    return this.#gone.signal;
  }

  brings(sessionId: string, tool: string): boolean {
    const asked = this.attachments.get(sessionId)?.asked ?? {};
    return toolsIn(asked).some(({ name }) => String(name) === tool);
  }

  follow(sessionId: string): void {
    const attachment = this.attachments.get(sessionId);
    if (attachment === undefined || attachment.attached || attachment.heard || attachment.reopening !== null) return;
    this.unopened.put([attachment]);
  }

  reopen(linkId?: string): void {
    const isLost = (attachment: Attachment) =>
      !attachment.attached && (linkId === undefined ? !isPeerLinkId(attachment.linkId) : attachment.linkId === linkId);
    this.unopened.put([...this.attachments.values()].filter(isLost));
  }

  /** Records that a link has the session open for this client now. */
  attach(attachment: Attachment, link: Link): void {
    attachment.attached = true;
    attachment.load = link.kind === "server" ? this.#loadNow(attachment, link) : null;
    const { sessionId } = attachment;
    if (link.kind === "peer" || this.gone.aborted || this.#kept.has(sessionId)) return;
    this.#kept.set(sessionId, this.door.sessions.context.provider.keep(sessionId));
  }

  /** Disposes the entries of `#kept` for the sessions that the client no longer has open. */
  #releaseLeft(): void {
    for (const [id, kept] of this.#kept) {
      if (this.attachments.get(id)?.attached === true) continue;
      kept[Symbol.dispose]();
      this.#kept.delete(id);
    }
  }

  #loadNow({ sessionId }: Attachment, { server, greeting }: ServerLink): string | null {
    const load = server.process && loadIdentity(this.homeOf(sessionId, server), sessionId, server.process);
    // Such an old runtime makes the lock file of a loaded session again when another client resumes the session
    // (measured with 1.0.81-0), so only its presence counts.
    return load === null || namesPrompts(greeting.version) ? load : "loaded";
  }

  /** Records that the session is no longer in its server's memory. */
  unloaded(sessionId: string): void {
    const attachment = this.attachments.get(sessionId);
    if (attachment === undefined) return;
    attachment.attached = false;
    attachment.heard = false;
  }

  /**
   * Finds the sessions that a server has unloaded without sending `session.shutdown`, and sends this event to the
   * client instead. Otherwise the client would wait for ever for the end of its turn, or miss the session's later
   * turns. When runtime 1.0.85 unloaded 180 sessions on a busy machine, it did not send 5 of these events, even though
   * it wrote all of them to the histories.
   */
  noticeUnloads(): void {
    this.#releaseLeft();
    for (const attachment of this.attachments.values()) {
      const { attached, load, linkId, sessionId } = attachment;
      const link = attached && load !== null ? this.links.connected(linkId) : undefined;
      if (link === undefined) continue;
      const now = this.#loadNow(attachment, link);
      if (now === load) continue;
      // The event may be on the way, so wait for it until the next call.
      const isMissed = attachment.endedLoad === load;
      attachment.endedLoad = load;
      if (!isMissed) continue;
      this.report.event({ event: "session-unloaded", sessionId, detail: "The server sent no event." });
      this.shutDown(attachment);
      this.socket.send(shutdownFrame(sessionId));
      // The server has the session in memory again, for another client. Reopen it for this client, too.
      if (now !== null) this.follow(sessionId);
    }
  }

  /**
   * Call this when the server has unloaded the session. The server will not send the end of a running turn, so this
   * method sends it. If the server took the prompt (`accepted`), the turn may have begun even though none of its events
   * has arrived.
   */
  shutDown(attachment: Attachment): void {
    const { sessionId, inTurn } = attachment;
    const turn = this.turns.get(sessionId);
    this.unloaded(sessionId);
    if (turn?.active === true && turn.accepted) this.ends.cut(sessionId, UNLOADED);
    else if (inTurn) this.ends.cutOther(sessionId, UNLOADED);
    attachment.inTurn = false;
    turn?.interrupted("unloaded");
  }

  /**
   * Call this when the client has left the session, and so gets no more of its events. The client's own turn may still
   * run in it.
   */
  left(sessionId: string): void {
    this.attachments.delete(sessionId);
    this.ends.over(sessionId);
    this.turns.get(sessionId)?.unheard();
  }

  /** The folder with the session's state: the server's home, or the folder that the client chose. */
  homeOf(sessionId: string, { home }: ServerRecord): string {
    const asked = this.attachments.get(sessionId)?.asked ?? {};
    return hasOwnFolder(asked) ? String(asked.configDir) : home;
  }

  /** Sends the client the end of the session's turn, because the server will send no more events of this turn. */
  cut(attachment: Attachment, message: string): void {
    const { sessionId, inTurn } = attachment;
    const turn = this.turns.get(sessionId);
    if (turn?.active === true) this.ends.cut(sessionId, message);
    else if (inTurn) this.ends.lost(sessionId, message);
    attachment.inTurn = false;
    if (turn?.active === true) turn.end("lost");
  }

  /** Sends the client the reason why its turn is being aborted. The server will send the end of the turn. */
  warn(sessionId: string, message: string): void {
    const [error] = brokenTurnFrames(sessionId, message);
    if (error !== undefined) this.socket.send(error);
  }

  /** Whether the client has no open request and no turn, and no server or session needs it now. */
  get isIdle(): boolean {
    if (this.requests.open > 0 || this.turns.size > 0 || this.needing !== undefined) return false;
    for (const { inTurn, reopening } of this.attachments.values()) if (inTurn || reopening !== null) return false;
    return true;
  }

  /** How many turns are running or waiting, here and on other hosts. */
  get inTurns(): number {
    return [...this.turns.values()].filter(({ over }) => over === null).length + this.#relayedTurns();
  }

  /**
   * Resolves when the client's turns are over, its requests are answered, and it has read all this. An SDK loses the
   * frames that it has received and not handled when the connection ends (measured with 1.0.14).
   */
  async settled(signal: AbortSignal): Promise<void> {
    // Twice, because requests may arrive while the client reads.
    for (let round = 0; round < 2; round++) {
      const now = performance.now();
      while (this.turns.size + this.#relayedTurns() > 0 || this.requests.hasOpenBefore(now))
        await pause(SETTLED_POLL_MS, signal);
      using limit = deadlineOn(this.door.clock, READ_MS, this.gone);
      await abortable(this.receipts.allRead(), limit.signal).catch(() => "the client has gone, or does not read");
      if (limit.signal.aborted) return;
    }
  }

  #relayedTurns(): number {
    return [...this.attachments.values()].filter(({ linkId, inTurn }) => inTurn && isPeerLinkId(linkId)).length;
  }

  close(): void {
    const gone = clientGone();
    this.#gone.abort(gone);
    this.requests.close();
    for (const turn of this.turns.values()) {
      turn.end("closed");
      turn.abort.abort(gone);
    }
    this.links.close();
    this.lines.unserved.close();
    this.unopened.close();
    for (const kept of this.#kept.values()) kept[Symbol.dispose]();
    this.#kept.clear();
  }
}
