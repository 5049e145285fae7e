import { FleetError } from "../../errors.js";
import type { RpcId } from "../../runtime/wire/server-message.js";
import type { ClientSocket } from "../wire/client-socket.js";
import { brokenTurnFrames } from "../wire/events.js";
import { refusalFrame } from "../wire/refusals.js";
import type { ReadReceipts } from "./read-receipts.js";

interface OpenPrompt {
  readonly sessionId: string;
  /** Whether the client may have sent the prompt before it read the end of another client's turn. */
  readonly isRaced: boolean;
}

interface LateAnswer {
  readonly id: RpcId;
  readonly frame: Buffer;
}

interface HeldEnd {
  readonly frame: Buffer;
  readonly isLast: boolean;
  readonly isError: boolean;
}

/**
 * The client's own prompts in one session, and what happens to the end of a turn (`session.idle`, `session.error`) that
 * arrives now. An empty cell means any value.
 *
 * | a prompt of the client                | `open` | `taken` | `begun` | an end of a turn that arrives now       |
 * | ------------------------------------- | ------ | ------- | ------- | --------------------------------------- |
 * | has no answer                         | > 0    |         | false   | ends another turn: goes to `held`       |
 * | was taken by the server, waits there  | 0      | its id  | false   | the same, unless another door sent it   |
 * | runs                                  |        |         | true    | ends the client's turn: passes          |
 * | none: the entry is deleted            |        |         |         | passes                                  |
 */
interface Own {
  /** How many prompts have arrived at this door and have no answer. */
  open: number;
  /** The message ids of prompts that the server took and has not begun. */
  readonly taken: Set<string>;
  /** The message ids of all prompts that began while `open` was not 0, including those of other clients. */
  readonly seen: Set<string>;
  /** Whether one of the client's prompts has begun, and the session has not been idle since. */
  begun: boolean;
  /** The error that replaces the answers in `late` if the turn ends without a reply. Null once it has a reply. */
  failure: string | null;
  /** Whether the client's own turn had a `session.error`. The client may send a prompt right after reading it. */
  hasFailed: boolean;
  /** Ends of other turns. The door holds them back, so that the client does not take them for the end of its own turn. */
  held: HeldEnd[];
  /** Answers to prompts with `isRaced`. The client gets each answer when the prompt's turn is over. */
  late: LateAnswer[];
}

const NO_ANSWER = "The turn ended without an answer.";

/**
 * Decides which ends of turns one client gets, and when, so that the SDK's `sendAndWait` returns the answer to its own
 * prompt (measured with 1.0.14). "Ends of other turns" in docs/architecture.md has the rules and the reasons.
 *
 * `answer`, `takenAgain`, `idle`, `error`, `cut`, `lost`, `cutOther` and `over` may send frames to the client. The other
 * methods only record something, or answer a question.
 */
export class TurnEnds {
  readonly #client: ClientSocket;
  readonly #receipts: ReadReceipts;
  readonly #open = new Map<RpcId, OpenPrompt>();
  readonly #own = new Map<string, Own>();

  constructor(client: ClientSocket, receipts: ReadReceipts) {
    this.#client = client;
    this.#receipts = receipts;
  }

  received(id: RpcId, sessionId: string): void {
    const own = this.#own.get(sessionId) ?? newOwn();
    own.open++;
    this.#own.set(sessionId, own);
    this.#open.set(id, { sessionId, isRaced: this.#receipts.isUnread(sessionId) });
  }

  /**
   * Sends the answer to a request.
   *
   * @param messageIds the ids of the prompts that the server took with this request. Null if the server refused the request,
   * or if it is not a prompt.
   */
  answer(id: RpcId, frame: Buffer, messageIds: readonly string[] | null = null): void {
    const prompt = this.#open.get(id);
    const own = prompt && this.#own.get(prompt.sessionId);
    if (prompt === undefined || own === undefined) {
      this.#client.send(frame);
      return;
    }
    this.#open.delete(id);
    this.#taken(own, messageIds);
    // Send the held ends before the answer. After a refusal, the client may send another prompt at once, and would take
    // an end that arrives later for the end of that prompt's turn.
    if (!isWaiting(own)) this.#release(prompt.sessionId, own);
    const goesOn = own.begun || own.taken.size > 0;
    if (prompt.isRaced && messageIds !== null && goesOn) own.late.push({ id, frame: Buffer.from(frame) });
    else this.#client.send(frame);
    this.#forget(prompt.sessionId, own);
  }

  /** Whether {@link began} must be called for the session. */
  watches(sessionId: string): boolean {
    return this.#own.has(sessionId);
  }

  /** Records that the server has begun a prompt of this client or of another client. */
  began(sessionId: string, messageId: string | undefined): void {
    const own = this.#own.get(sessionId);
    const isOwn = own !== undefined && messageId !== undefined && own.taken.delete(messageId);
    if (own === undefined) return;
    own.held = []; // the session is busy again, and will send another end
    if (isOwn) begin(own);
    else if (own.open > 0 && messageId !== undefined) own.seen.add(messageId);
  }

  spoke(sessionId: string): void {
    const own = this.#own.get(sessionId);
    if (own?.begun === true) own.failure = null;
  }

  /** The message ids of prompts that began while a prompt of the client had no answer. */
  seen(sessionId: string): ReadonlySet<string> {
    return new Set(this.#own.get(sessionId)?.seen);
  }

  /** Whether the server took a prompt with this message id and has not begun it. */
  waitsFor(sessionId: string, messageId: string): boolean {
    return this.#own.get(sessionId)?.taken.has(messageId) === true;
  }

  /** Call this when an answered prompt is sent again, because the server ended before it began the prompt. */
  sentAgain(sessionId: string, messageIds: readonly string[]): void {
    const own = this.#own.get(sessionId) ?? newOwn();
    this.#own.set(sessionId, own);
    for (const messageId of messageIds) own.taken.delete(messageId);
    own.open++;
  }

  /** Like {@link answer} for a prompt that was sent again. Sends no answer, because the client has the first one. */
  takenAgain(sessionId: string, messageIds: readonly string[] | null): void {
    const own = this.#own.get(sessionId);
    if (own === undefined) return;
    this.#taken(own, messageIds);
    if (!isWaiting(own)) this.#release(sessionId, own);
    this.#forget(sessionId, own);
  }

  /** Whether the server has begun all prompts that it took from this client. */
  hasBegunAll(sessionId: string): boolean {
    return (this.#own.get(sessionId)?.taken.size ?? 0) === 0;
  }

  /** Whether a `session.error` is held back. It may be the reason why a prompt that the server took does not begin. */
  holdsError(sessionId: string): boolean {
    return this.#own.get(sessionId)?.held.some(({ isError }) => isError) === true;
  }

  /**
   * Sends a `session.idle`, or holds it back.
   *
   * @param isLast whether the event ends the turn
   * @param isJudged whether another front door sent it. That door already holds back the ends that the client must not get.
   * So this door holds an end back only while a prompt has no answer, because such a prompt may not have reached the other
   * door.
   */
  idle(sessionId: string, frame: Buffer, end: { isLast: boolean; isJudged: boolean; isError?: boolean }): void {
    const { isLast, isJudged, isError = false } = end;
    const own = this.#own.get(sessionId);
    if (own !== undefined && isWaiting(own) && (own.open > 0 || !isJudged)) {
      own.held.push({ frame: Buffer.from(frame), isLast, isError }); // a copy, because the frame is part of a larger buffer
      return;
    }
    this.#client.send(frame);
    const isOwn = own !== undefined && (own.begun || own.taken.size > 0);
    if (!isOwn || own.hasFailed) this.#receipts.askBehind(sessionId);
    if (own === undefined || !isLast) return;
    if (isJudged) own.taken.clear();
    this.#settle(own);
    this.#forget(sessionId, own);
  }

  /** Sends a `session.error`, or holds it back. The turn ends only with the `session.idle` that follows. */
  error(sessionId: string, frame: Buffer, { message, isJudged }: { message: string; isJudged: boolean }): void {
    const own = this.#own.get(sessionId);
    if (own?.begun === true) {
      own.failure = message;
      own.hasFailed = true;
    }
    this.idle(sessionId, frame, { isLast: false, isJudged, isError: true });
  }

  /** Sends the client the end of its own turn, because the server will not send one. */
  cut(sessionId: string, message: string): void {
    for (const frame of brokenTurnFrames(sessionId, message)) this.#client.send(frame);
    this.#receipts.askBehind(sessionId);
    const own = this.#own.get(sessionId);
    if (own === undefined) return;
    own.held = [];
    own.failure = message;
    this.over(sessionId);
  }

  /**
   * Sends the client the end of a turn, because the client gets nothing more from that server or host. The prompts that
   * the server took will not begin. A prompt without an answer might not have reached that server, and may still run
   * elsewhere. If there is such a prompt, holds the end back until that prompt is answered.
   */
  lost(sessionId: string, message: string): void {
    const own = this.#own.get(sessionId);
    if (own === undefined || own.open === 0) this.cut(sessionId, message);
    else {
      own.taken.clear();
      this.cutOther(sessionId, message);
    }
  }

  /** Like {@link cut}, for the turn of another client. Holds the end back in the same cases as {@link idle}. */
  cutOther(sessionId: string, message: string): void {
    for (const frame of brokenTurnFrames(sessionId, message)) {
      this.idle(sessionId, frame, { isLast: true, isJudged: false });
    }
  }

  /** Sends the ends that were held back, because the client's own turn is over or the client has left the session. */
  over(sessionId: string): void {
    const own = this.#own.get(sessionId);
    if (own === undefined) return;
    own.taken.clear();
    own.seen.clear();
    this.#release(sessionId, own);
    this.#settle(own);
    this.#forget(sessionId, own);
  }

  #taken(own: Own, messageIds: readonly string[] | null): void {
    own.open--;
    for (const messageId of messageIds ?? []) {
      if (own.seen.has(messageId)) begin(own);
      else own.taken.add(messageId);
    }
    // The server gave the prompt no id, so no event will show that it has begun.
    if (messageIds?.length === 0) begin(own);
    if (own.open === 0) own.seen.clear();
  }

  #release(sessionId: string, own: Own): void {
    const { held } = own;
    if (held.length === 0) return;
    own.held = [];
    for (const { frame } of held) this.#client.send(frame);
    this.#receipts.askBehind(sessionId);
    if (held.some(({ isLast }) => isLast)) this.#settle(own);
  }

  /** Records that the turn is over, and sends the answers that waited for that. */
  #settle(own: Own): void {
    const { late, failure } = own;
    own.late = [];
    own.begun = false;
    own.failure = null;
    own.hasFailed = false;
    for (const { id, frame } of late) {
      this.#client.send(failure === null ? frame : refusalFrame(id, new FleetError("FLEET_TURN_FAILED", failure)));
    }
  }

  #forget(sessionId: string, own: Own): void {
    const isOver = own.open === 0 && own.taken.size === 0 && !own.begun;
    if (isOver && own.late.length === 0) this.#own.delete(sessionId);
  }
}

function newOwn(): Own {
  return {
    open: 0,
    taken: new Set(),
    seen: new Set(),
    begun: false,
    failure: null,
    hasFailed: false,
    held: [],
    late: [],
  };
}

function begin(own: Own): void {
  own.begun = true;
  own.failure = NO_ANSWER;
}

function isWaiting({ open, taken, begun }: Own): boolean {
  return !begun && open + taken.size > 0;
}
