import { isFleetError } from "../../base/errors.js";
import { encodeMessage, type Frame } from "../../runtime/wire/frames.js";
import { RpcError } from "../../runtime/wire/rpc-client.js";
import type { RpcId, ServerMessage } from "../../runtime/wire/scan.js";
import type { Protocol } from "../policy/methods.js";
import { type ClientRequest, type Params, replaceId, type WithId } from "../wire/client-message.js";
import type { ClientSocket } from "../wire/client-socket.js";
import { messageIdsOf, resultIn } from "../wire/events.js";
import { errorFrame, REFUSED, refusalFrame, serverLost } from "../wire/refusals.js";
import { isMoved, type Link, type RequestLines } from "./links.js";
import type { Reporter, RequestReport } from "./report.js";
import type { Share } from "./shares.js";
import type { TurnEnds } from "./turn.js";

export interface Answer {
  failed: boolean;
  body: Buffer;
  /** The ids of the prompts that the server took; null if the server refused them or the request is not a prompt. */
  messageIds: readonly string[] | null;
}

export interface ForwardOptions {
  /** The method and parameters that the server gets in place of the client's. */
  method?: string;
  params?: Params;
  /**
   * Called with the server's answer. If it returns `hold`, the client does not get this answer, and the caller must
   * answer the client.
   */
  onAnswer?: (answer: Answer) => "hold" | undefined;
  /** Called when the server ends without an answer. If it returns `hold`, the caller must answer the client. */
  onLost?: () => "hold" | undefined;
}

interface Open {
  method: string;
  since: number;
  bytes: number;
}

interface Pending {
  request: ClientRequest;
  link: Link;
  options: ForwardOptions;
}

/**
 * A server's request to the client. The door sends it to the client under a new id, because two servers may use the
 * same id.
 */
interface Asked {
  link: Link;
  id: RpcId;
  /** Changes the client's result before the server gets it. */
  filter: ((result: unknown) => unknown) | undefined;
}

/** The parts of a client's state that its requests change. */
interface Requester {
  readonly socket: ClientSocket;
  readonly protocol: Protocol;
  readonly share: Share;
  readonly report: Reporter;
  readonly lines: RequestLines;
  readonly ends: TurnEnds;
  readonly receipts: ReadReceipts;
}

/** The open requests of one client connection, in both directions. */
export class OpenRequests {
  readonly #client: Requester;
  /** The client's requests that have no answer, by their ids. */
  readonly #open = new Map<RpcId, Open>();
  readonly #pending = new Map<RpcId, Pending>();
  readonly #asked = new Map<number, Asked>();
  #openBytes = 0;
  #sequence = 0;

  constructor(client: Requester) {
    this.#client = client;
  }

  /** How many of the client's requests have no answer. */
  get open(): number {
    return this.#open.size;
  }

  /** Whether a request has no answer that began before this time, by `performance.now()`. */
  hasOpenBefore(ms: number): boolean {
    const [oldest] = this.#open.values();
    return oldest !== undefined && oldest.since < ms;
  }

  /**
   * The length of all unanswered requests together, in bytes. The door keeps each of them in memory until it is
   * answered.
   */
  get openBytes(): number {
    return this.#openBytes;
  }

  /** @returns false when another unanswered request has this id, because an answer could belong to either of them */
  begin({ id, method, params, bytes }: ClientRequest): boolean {
    if (this.#open.has(id)) return false;
    const { protocol, receipts, ends, share } = this.#client;
    const { handler } = protocol.handlingOf(method);
    if (handler === "create" || handler === "open") receipts.askOnce();
    if (handler === "send" && typeof params.sessionId === "string") ends.received(id, params.sessionId);
    this.#open.set(id, { method, since: performance.now(), bytes });
    this.#openBytes += bytes;
    share.begin(bytes);
    return true;
  }

  /** Passes a request on. Encodes it again, so that the server gets exactly the values that the door checked. */
  forward(link: Link, request: ClientRequest, options: ForwardOptions = {}): void {
    const { id } = request;
    this.#pending.set(id, { request, link, options });
    const { method = request.method, params = request.params } = options;
    if (!link.upstream.send(encodeMessage({ id, method, params }))) this.#client.socket.hold(link);
    // If the link had already closed, no event will report that this request is lost, so handle that here.
    if (link.upstream.closed) this.#lose(id);
  }

  answer(link: Link, message: ServerMessage & { kind: "response" }, { raw, body }: Frame): void {
    const pending = this.#pending.get(message.id);
    if (pending?.link !== link) return;
    const { failed } = message;
    const isTaken = !failed && this.#client.protocol.handlingOf(pending.request.method).handler === "send";
    const messageIds = isTaken ? messageIdsOf(resultIn(body), link.greeting) : null;
    const held = pending.options.onAnswer?.({ failed, body, messageIds }) === "hold";
    // Delete the entry only now. If `resultIn` throws, the link is closed, and `drop` answers every request that still
    // has an entry.
    this.#pending.delete(message.id);
    if (held) return;
    this.#end(pending.request, failed ? "failed" : "answered");
    this.#client.ends.answer(pending.request.id, raw, messageIds);
  }

  /** Answers in place of a server. @param messageIds as in {@link TurnEnds.answer} */
  reply(request: ClientRequest, result: unknown, messageIds: readonly string[] | null = null): void {
    if (!this.#open.has(request.id)) return; // already answered
    this.#end(request, "answered");
    this.#client.ends.answer(request.id, encodeMessage({ id: request.id, result }), messageIds);
  }

  /**
   * Answers a request with an error. If the error shows that the session or user has moved to another host, puts the
   * request back in its line instead.
   *
   * @returns false if the request is back in its line
   */
  refuse(request: ClientRequest, error: unknown): boolean {
    if (isMoved(error) && this.#client.lines.lookAgain(request)) return false;
    const { id } = request;
    if (!this.#open.has(id)) return true; // already answered
    if (error instanceof RpcError) {
      this.#end(request, "failed");
      this.#client.ends.answer(id, errorFrame(id, error.rpcCode, error.message, error.data));
      return true;
    }
    const code = isFleetError(error) ? error.code : "FLEET_INTERNAL";
    this.#end(request, code === "FLEET_SERVER_LOST" ? "lost" : "denied", code);
    this.#client.ends.answer(id, refusalFrame(id, error));
    return true;
  }

  ask(link: Link, { id, idAt }: ServerMessage & { kind: "request" }, { body }: Frame, filter?: Asked["filter"]): void {
    const own = this.#sequence++;
    this.#asked.set(own, { link, id, filter });
    this.#client.socket.send(replaceId(body, idAt, own));
  }

  /** Passes the client's answer on to the server that asked. @returns false if no server asked for it */
  answered({ id, withId }: { id: RpcId; withId: WithId }): boolean {
    const asked = typeof id === "number" ? this.#asked.get(id) : undefined;
    if (asked === undefined) return false;
    this.#asked.delete(Number(id));
    if (!asked.link.upstream.send(withId(asked.id, asked.filter))) this.#client.socket.hold(asked.link);
    return true;
  }

  /**
   * Call this when a link has ended. Answers the client's requests that wait for it, and forgets the server's requests.
   */
  drop(link: Link): void {
    this.#client.socket.letGo(link);
    for (const [id, asked] of this.#asked) if (asked.link === link) this.#asked.delete(id);
    for (const [id, pending] of this.#pending) if (pending.link === link) this.#lose(id);
  }

  close(): void {
    for (const id of [...this.#open.keys()]) this.#end({ id }, "abandoned");
  }

  /** Refuses a server's request that this client must not answer. */
  static decline({ upstream }: Link, id: RpcId): void {
    upstream.send(errorFrame(id, REFUSED, "There is no such session on this connection."));
  }

  #lose(id: RpcId): void {
    const pending = this.#pending.get(id);
    if (pending === undefined) return;
    this.#pending.delete(id);
    if (pending.options.onLost?.() !== "hold") this.refuse(pending.request, serverLost("it answered"));
  }

  #end({ id }: Pick<ClientRequest, "id">, outcome: RequestReport["outcome"], code?: RequestReport["code"]): void {
    const open = this.#open.get(id);
    this.#open.delete(id);
    if (open === undefined) return;
    this.#openBytes -= open.bytes;
    this.#client.share.end(open.bytes);
    this.#client.report.request({
      method: this.#client.protocol.isKnownMethod(open.method) ? open.method : "unknown",
      outcome,
      ...(code === undefined ? {} : { code }),
      ms: performance.now() - open.since,
    });
  }
}

/** The prefix of the ids of the front door's questions to the client. */
const QUESTION = "fleet-read-";

/**
 * Finds out what a client has read. The front door sends the client requests with an unknown method. The client's error
 * answer shows that it has read everything before the request. "Question" means such a request here.
 */
export class ReadReceipts {
  readonly #client: ClientSocket;
  readonly #isRelayed: boolean;
  /** How many questions the front door has asked the client. */
  #asked = 0;
  /**
   * The number of the last question that the client has answered. 0 if it has answered none. Some clients never answer.
   */
  #answered = 0;
  /**
   * For each session, the number of the question that followed the last end of a turn (see {@link askBehind}). The
   * client's answer proves that it has read that end.
   */
  readonly #unread = new Map<string, number>();
  #onAnswer: (() => void) | undefined;

  /** @param isRelayed whether another front door relays the client. That door then asks the questions. */
  constructor(client: ClientSocket, { isRelayed }: { isRelayed: boolean }) {
    this.#client = client;
    this.#isRelayed = isRelayed;
  }

  /** Asks a first question, so that the door knows before the client's first prompt whether the client answers. */
  askOnce(): void {
    if (this.#asked === 0) this.#ask();
  }

  /** Asks whether the client has read the end of a turn that the door has just sent. */
  askBehind(sessionId: string): void {
    this.#ask();
    this.#unread.set(sessionId, this.#asked);
  }

  /**
   * Whether the client might not have read the end of a turn that {@link askBehind} last asked about in this session.
   * False for a client that has never answered a question.
   */
  isUnread(sessionId: string): boolean {
    return this.#answered > 0 && (this.#unread.get(sessionId) ?? 0) > this.#answered;
  }

  /**
   * Resolves when the client has read everything that the door has sent so far. Resolves at once for a client that has
   * never answered a question. Only one call may wait at a time.
   */
  async allRead(): Promise<void> {
    if (this.#answered === 0) return;
    this.#ask();
    while (this.#answered < this.#asked) {
      await new Promise<void>((resolve) => {
        this.#onAnswer = resolve;
      });
    }
  }

  /** Records the client's answer to a question. @returns false if the response answers something else */
  take(id: RpcId): boolean {
    if (typeof id !== "string" || !id.startsWith(QUESTION)) return false;
    const answered = Number(id.slice(QUESTION.length));
    if (answered <= this.#asked) this.#answered = Math.max(this.#answered, answered);
    if (this.#answered === this.#asked) this.#unread.clear();
    this.#onAnswer?.();
    return true;
  }

  #ask(): void {
    if (this.#isRelayed) return;
    this.#asked++;
    this.#client.send(encodeMessage({ id: `${QUESTION}${this.#asked}`, method: "$/copilotfleet.read" }));
  }
}
