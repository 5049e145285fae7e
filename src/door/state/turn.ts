import type { Charge } from "../../accounts/limits.js";
import { type Clock, systemClock } from "../../base/clock.js";
import { FleetError } from "../../base/errors.js";
import type { SessionRecord } from "../../base/session.js";
import type { RpcId } from "../../runtime/wire/scan.js";
import type { TurnEvents } from "../../sessions/use/turn-records.js";
import type { SessionUse } from "../../sessions/use/use-session.js";
import type { ClientRequest } from "../wire/client-message.js";
import type { ClientSocket } from "../wire/client-socket.js";
import { brokenTurnFrames } from "../wire/events.js";
import { refusalFrame } from "../wire/refusals.js";
import { Mailbox, OrderedQueue, type ServerLink } from "./links.js";
import type { ReadReceipts } from "./open-requests.js";

/** How long a turn may last before the door asks the server whether it is over, in milliseconds. */
const ASK_AFTER_MS = 15_000;
/**
 * The same as `ASK_AFTER_MS`, for a client that does not get the session's events. The door finds the end of its turn
 * only by asking.
 */
const ASK_BLIND_MS = 250;
/** How long the door waits for the answer to a prompt before it asks whether the turn is over, in milliseconds. */
const UNANSWERED_MS = 30_000;

/**
 * A prompt of the client that was not refused. Until it is answered, it waits in one of three places:
 *
 * - in its line (`RequestLines`), until the dispatcher gives it to `PromptQueue`. `OpenRequests.refuse` puts it back
 *   there
 *   if its session has moved to another host.
 * - in {@link Turn.waiting}, until the turn has begun and the earlier prompts have been sent. If the turn is over
 *   before
 *   that, `PromptQueue` moves the prompt to a new turn.
 * - in `OpenRequests`, after it was sent to the server.
 */
export interface Prompt {
  readonly request: ClientRequest;
  /** Its position in the order in which the client's requests came. Prompts reach the server in this order. */
  readonly place: number;
  /**
   * The turn that has counted this prompt as its own. A prompt that is moved to another turn is counted there again.
   */
  turn: Turn | undefined;
  /** Whether the server has already answered this prompt once with the error that it does not have the session. */
  again: boolean;
  sent: SentPrompt | undefined;
  /** Whether the door has sent the prompt again because its server ended. It does so only once. */
  isRepeated: boolean;
  isAnswered: boolean;
  /** Set right before the prompt is sent, if the prompt counts for the user's limits; otherwise null. */
  charge: Charge | null;
}

interface SentPrompt {
  readonly link: ServerLink;
  /** The length of the session's history when the prompt was sent, in bytes. */
  readonly historyBytes: number;
  /** The message ids of prompts that had begun when this prompt was sent. */
  readonly seenBefore: ReadonlySet<string>;
  /** The message ids in the server's answer; null until the server answers. */
  messageIds: readonly string[] | null;
}

/** Records the server's answer to a prompt. */
export function noteAnswer(prompt: Prompt, messageIds: readonly string[]): void {
  if (prompt.sent !== undefined) prompt.sent.messageIds = messageIds;
  prompt.isAnswered = true;
}

/** Prompts whose server has ended. The door does not know whether the server had begun them. */
export interface Doubt {
  readonly prompts: readonly Prompt[];
  readonly link: ServerLink;
}

type TurnEnd = "idle" | "refused" | "lost" | "unloaded" | "closed";

/**
 * One client's turn in a session. It lasts from the client's first prompt until the session is idle. Prompts that the
 * client sends during the turn belong to it, as they do on a bare server.
 *
 * Four parts share the work at the end of a turn:
 *
 * - `Incoming` receives `session.idle`, `session.error` and `session.shutdown` from the server. It reports an end first
 *   to `Turn`, and then to `TurnEnds`. `loseLink` does this when the link itself ends.
 * - `Turn` decides when this client's turn is over. If no event shows the end, it asks the server ({@link ended}). It
 *   sends nothing to the client.
 * - `TurnEnds` decides which ends the client gets, and when. This includes the ends of other clients' turns.
 * - `PromptQueue` waits in `#hold` until the turn is over. Then it records the use, removes the use marker and releases
 *   the lease.
 *
 * The states of a turn. An empty cell means any value.
 *
 * | state                                 | `waits` | `active` | `isInDoubt` | `over` | prompts in `waiting`             |
 * | ------------------------------------- | ------- | -------- | ----------- | ------ | -------------------------------- |
 * | waits for other turns                 | true    | false    | false       | null   | stay, and can be cancelled       |
 * | runs                                  | false   | true     | false       | null   | are sent in order                |
 * | runs, and its server has just ended   | false   | true     | true        | null   | stay until the doubt is settled  |
 * | is over                               | false   | false    |             | why    | are moved to another turn        |
 */
export class Turn {
  /** The session's record. {@link enter} replaces it, because the session may move while the turn waits. */
  record: SessionRecord;
  /** The prompts to send, in order. Each is sent once the turn has begun and the prompts before it have been sent. */
  readonly waiting = new OrderedQueue<Prompt>();
  /**
   * Resolves once the waiting prompts have been sent or refused. Null while no prompt is being sent. If the turn ends
   * while a prompt is being sent, this stays set until that prompt is done. `PromptQueue` then moves the other waiting
   * prompts to a new turn.
   */
  sending: Promise<void> | null = null;
  /** Prompts that were sent in this turn and not refused. */
  readonly sent = new Set<Prompt>();
  readonly doubts = new Mailbox<Doubt>();
  /** Ends the wait for other turns. The prompts that wait get the signal's reason as their error. */
  readonly abort = new AbortController();
  /** Resolves when the turn is over, its lease is released and its end is recorded. */
  settled: Promise<void> = Promise.resolve();
  readonly #clock: Clock;
  #doubtful: readonly Prompt[] = [];
  #started = false;
  #end: TurnEnd | null = null;
  #outcome: "completed" | "failed" | "aborted" = "completed";
  #unanswered = 0;
  #accepted = 0;
  /** The clock's time when the last prompt was sent. */
  #sentAt = 0;
  /**
   * Whether a `session.idle` came that may belong to work before this turn's last prompt. If so, the door has to ask
   * the server.
   */
  #idleMissed = false;
  #wake: (() => void) | undefined;
  /** This turn's use of the session. Undefined while the turn waits for others. */
  use: SessionUse | undefined;
  /** Records the turn's end in the audit log. Undefined until the turn starts. */
  events: TurnEvents | undefined;

  constructor(record: SessionRecord, clock = systemClock) {
    this.record = record;
    this.#clock = clock;
  }

  get active(): boolean {
    return this.#started && this.#end === null;
  }

  get over(): TurnEnd | null {
    return this.#end;
  }

  /** How the turn ends, as far as the server's events show it. */
  get outcome(): "completed" | "failed" | "aborted" {
    return this.#outcome;
  }

  /** Handles an event that shows how the turn may end. A further step of the model shows that it goes on. */
  noteStep({ agentId }: { agentId?: string }, outcome: Turn["outcome"]): void {
    if (this.active && agentId === undefined) this.#outcome = outcome;
  }

  /** Whether the server took a prompt. Otherwise the turn has had no effect. */
  get accepted(): boolean {
    return this.#accepted > 0;
  }

  /** Gives the turn its use of the session. Nobody else has a turn in the session now. */
  enter(use: SessionUse): void {
    this.use = use;
    this.record = use.record;
  }

  start(): void {
    this.#started = true;
  }

  /** Whether a prompt was sent and not refused. The server may then be working on it. */
  get begun(): boolean {
    return this.#accepted + this.#unanswered > 0;
  }

  get waits(): boolean {
    return !this.#started && this.#end === null;
  }

  get isInDoubt(): boolean {
    return this.#doubtful.length > 0;
  }

  /** Counts a prompt that this turn is going to send. Each call needs a later call of {@link answered}. */
  sends(): void {
    this.#unanswered++;
    this.#sentAt = this.#clock.now();
  }

  /**
   * Counts an accepted prompt as unanswered again. The door sends it again, because the server ended before it began
   * the prompt.
   */
  sendsAgain(): void {
    this.#accepted--;
    this.sends();
  }

  doubt(prompts: readonly Prompt[], link: ServerLink): void {
    this.#doubtful = [...this.#doubtful, ...prompts];
    this.doubts.put({ prompts, link });
  }

  isDoubtful(prompt: Prompt): boolean {
    return this.#doubtful.includes(prompt);
  }

  settle(prompts: readonly Prompt[]): void {
    this.#doubtful = this.#doubtful.filter((prompt) => !prompts.includes(prompt));
  }

  /** Records that a prompt has its answer. @param taken false if the server or the door refused the prompt */
  answered(taken: boolean): void {
    this.#unanswered--;
    if (taken) this.#accepted++;
    else if (this.#accepted === 0 && this.#unanswered === 0) this.end("refused");
    if (this.#idleMissed && this.#unanswered === 0) this.#wake?.();
  }

  /**
   * Handles a `session.idle`. If this turn has not started, the event ends another turn, so this method ignores it.
   * If a prompt of this turn has no answer or has not begun, the event may belong to earlier work, so the door asks the
   * server.
   *
   * @param hasBegunAll whether the server has begun all prompts that it took from this client
   */
  idle(hasBegunAll: boolean): void {
    if (!this.#started) return;
    if (this.#unanswered === 0 && hasBegunAll) {
      this.end("idle");
      return;
    }
    this.#idleMissed = true;
    if (this.#unanswered === 0) this.#wake?.();
  }

  /**
   * Call this when the client no longer gets the session's events. The door then asks the server whether the turn is
   * over.
   */
  unheard(): void {
    this.#wake?.();
  }

  end(how: TurnEnd): void {
    this.#end ??= how;
    this.#wake?.();
  }

  /**
   * Ends the turn, because the session is no longer in its server's memory. Does nothing if the turn has not started.
   */
  interrupted(how: "lost" | "unloaded"): void {
    if (this.#started) this.end(how);
  }

  /**
   * Resolves when the turn is over.
   *
   * @param isIdle asks the server whether the session is idle
   * @param isBlind whether this client does not get the session's events at the moment
   * @param patienceMs how long the server must stay idle before the turn counts as over, in milliseconds. If the server
   * has begun all prompts that it took, this is 0, and two idle answers (or one after a `session.idle`) are enough. If
   * it has not, the time must be long, because a busy server may take long to begin a prompt.
   * @returns true if the door found the end by asking and not by an event
   */
  async ended(isIdle: () => Promise<boolean>, isBlind: () => boolean, patienceMs: () => number): Promise<boolean> {
    let idleBefore = false;
    let idleSince: number | null = null;
    let askAfterMs = ASK_AFTER_MS;
    while (this.#end === null) {
      if (!this.#idleMissed || this.#unanswered > 0) await this.#pause(isBlind() ? ASK_BLIND_MS : askAfterMs);
      if (this.#end !== null) return false;
      if (this.#unanswered > 0 && this.#clock.now() - this.#sentAt < UNANSWERED_MS) continue;
      const missed = this.#idleMissed;
      this.#idleMissed = false;
      const askedAt = this.#sentAt;
      const idle = await isIdle();
      if (this.#end !== null) return false;
      // If a prompt was sent while the server was being asked, ask again. The answer may be older than that prompt.
      if (this.#sentAt !== askedAt) continue;
      idleSince = idle ? (idleSince ?? this.#clock.now()) : null;
      // Require two idle answers, or one after a `session.idle`. The server may give a single idle answer just before
      // it begins a prompt.
      const waitMs = isBlind() ? 0 : patienceMs();
      const isSure = waitMs === 0 ? idleBefore || missed : this.#clock.now() - (idleSince ?? 0) >= waitMs;
      if (idle && isSure) {
        this.end("idle");
        return true;
      }
      idleBefore = idle;
      // After a missed `session.idle` or an idle answer, there may be no further `session.idle`. So ask again soon.
      // While the server is busy, double the pause each time.
      if (missed || idle) askAfterMs = ASK_BLIND_MS;
      else askAfterMs = Math.min(2 * askAfterMs, ASK_AFTER_MS);
    }
    return false;
  }

  async #pause(ms: number): Promise<void> {
    // Use a plain timer, because every turn waits here. An AbortSignal and its error would cost many times as much.
    await new Promise<void>((resolve) => {
      const cancel = this.#clock.after(ms, resolve);
      this.#wake = () => {
        cancel();
        resolve();
      };
    });
    this.#wake = undefined;
  }
}

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
  /**
   * Ends of other turns. The door holds them back, so that the client does not take them for the end of its own turn.
   */
  held: HeldEnd[];
  /** Answers to prompts with `isRaced`. The client gets each answer when the prompt's turn is over. */
  late: LateAnswer[];
}

const NO_ANSWER = "The turn ended without an answer.";

/**
 * Decides which ends of turns one client gets, and when, so that the SDK's `sendAndWait` returns the answer to its own
 * prompt (measured with 1.0.14). After `sendAndWait` has sent its prompt, it takes the first `session.idle` or
 * `session.error` for the end of its own turn, even if another client's turn has ended, and returns the last message
 * until then. So:
 *
 * - A client whose prompt waits does not get the ends of other turns. If the prompt is refused, it gets the last of
 *   them first.
 * - The client may send a prompt while the end of another turn is on its way to it. So the door asks after each such
 *   end whether
 * the client has read it ({@link ReadReceipts}). If a prompt arrives before the client's answer, the door delays the
 * answer to
 * the prompt until the prompt's turn is over. It does the same for the `session.idle` that follows a `session.error` of
 * the
 *   client's own turn. It does not wait for clients that never answer such questions.
 *
 * `answer`, `takenAgain`, `idle`, `error`, `cut`, `lost`, `cutOther` and `over` may send frames to the client. The
 * other methods only record something, or answer a question.
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
   * @param messageIds the ids of the prompts that the server took with this request. Null if the server refused the
   * request, or if it is not a prompt.
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
   * @param isJudged whether another front door sent it. That door already holds back the ends that the client must not
   * get. So this door holds an end back only while a prompt has no answer, because such a prompt may not have reached
   * the other door.
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
