import type { SessionRecord } from "../../model/session.js";
import { type Clock, systemClock } from "../../runtime/clock.js";
import type { SessionUse } from "../../sessions/use/use-session.js";
import type { ClientRequest } from "../wire/client-message.js";
import { Line } from "./lines.js";
import type { ServerLink } from "./links.js";
import { Mailbox } from "./mailbox.js";

/** How long a turn may be silent before the server is asked about it, in milliseconds. */
const ASK_AFTER_MS = 15_000;
/**
 * How long to wait instead if this client does not get the session's events, in milliseconds. The door learns about the
 * end of such a turn only by asking.
 */
const ASK_BLIND_MS = 250;
/** How long to wait for the answer to a prompt, which may never come, before the server is asked, in milliseconds. */
const UNANSWERED_MS = 30_000;

/** A prompt of the client that was not refused. */
export interface Prompt {
  readonly request: ClientRequest;
  /** Its position in the order in which the client's requests came. Prompts reach the server in this order. */
  readonly place: number;
  /** The turn that it counts as a part of. */
  turn: Turn | undefined;
  /** Whether the server has already answered once that it does not have the session. */
  again: boolean;
  sent: SentPrompt | undefined;
  /** Whether it was sent again because its server ended. */
  isRepeated: boolean;
  isAnswered: boolean;
}

export interface SentPrompt {
  readonly link: ServerLink;
  /** The length of the session's history when it was sent, in bytes. */
  readonly historyBytes: number;
  /** The message ids of prompts that had begun by then. */
  readonly seenBefore: ReadonlySet<string>;
  /** The message ids in the server's answer; null until the server answers. */
  messageIds: readonly string[] | null;
}

/** Notes the message ids that a prompt has in the answer of its server. */
export function noteAnswer(prompt: Prompt, messageIds: readonly string[]): void {
  if (prompt.sent !== undefined) prompt.sent.messageIds = messageIds;
  prompt.isAnswered = true;
}

/** Prompts whose server has ended, and of which the door does not know whether they had begun. */
export interface Doubt {
  readonly prompts: readonly Prompt[];
  readonly link: ServerLink;
}

export type TurnEnd = "idle" | "refused" | "lost" | "unloaded" | "closed";

/**
 * One client's turn in a session. It lasts from the first prompt that the door passes on until the session is idle. Prompts
 * that the client sends during the turn belong to it, as they do on a bare server.
 */
export class Turn {
  /** Read again if the turn had to wait, or if the session is on another server by the time the turn begins. */
  record: SessionRecord;
  /** Prompts to be sent, in order, once the turn has begun and the prompts before them have been sent. */
  readonly waiting = new Line<Prompt>();
  /** Resolves once the waiting prompts have been sent or refused; null when no prompt is being sent. */
  sending: Promise<void> | null = null;
  /** Prompts that were sent in this turn and not refused. */
  readonly sent = new Set<Prompt>();
  readonly doubts = new Mailbox<Doubt>();
  /** Ends the wait for the turn, with an error for the prompts that wait. */
  readonly abort = new AbortController();
  /** Resolves when all that belongs to the turn is done: its lease is released, and its end is recorded. */
  settled: Promise<void> = Promise.resolve();
  readonly #clock: Clock;
  #doubtful: readonly Prompt[] = [];
  /** False while the turn waits for others. */
  #started = false;
  #end: TurnEnd | null = null;
  #unanswered = 0;
  #accepted = 0;
  /** When the last prompt was sent, by the clock. */
  #sentAt = 0;
  #idleMissed = false;
  #wake: (() => void) | undefined;
  /** The use of the session by this turn, once others let it in. */
  use: SessionUse | undefined;

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

  /** Whether the server took a prompt. Otherwise the turn has had no effect. */
  get accepted(): boolean {
    return this.#accepted > 0;
  }

  /** The turn has its use of the session: nobody else takes a turn in it now. */
  enter(use: SessionUse): void {
    this.use = use;
    this.record = use.record;
  }

  start(): void {
    this.#started = true;
  }

  /** Whether a prompt was sent and not refused, so that the server may be working on it. */
  get begun(): boolean {
    return this.#accepted + this.#unanswered > 0;
  }

  /** Whether the turn waits for others, so that its prompts can be taken back. */
  get waits(): boolean {
    return !this.#started && this.#end === null;
  }

  /**
   * Whether prompts are in doubt: their server ended, and we do not know whether it had begun them. Until this is
   * settled, no other prompt is sent.
   */
  get isInDoubt(): boolean {
    return this.#doubtful.length > 0;
  }

  /** A prompt of this turn is to be sent. Each call needs one call of {@link answered} later. */
  sends(): void {
    this.#unanswered++;
    this.#sentAt = this.#clock.now();
  }

  /** A prompt that the server took is sent again, because the server ended before it began the prompt. */
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

  /** The server took the prompt, or refused it. */
  answered(taken: boolean): void {
    this.#unanswered--;
    if (taken) this.#accepted++;
    else if (this.#accepted === 0 && this.#unanswered === 0) this.end("refused");
    if (this.#idleMissed && this.#unanswered === 0) this.#wake?.();
  }

  /**
   * The session has become idle. An idle that arrives before this turn has started ends another turn, so it is ignored.
   *
   * While a prompt of this turn is unanswered, or was taken and has not begun, the idle may end earlier work. The door
   * then asks the server.
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

  /** The client no longer gets the session's events. */
  unheard(): void {
    this.#wake?.();
  }

  end(how: TurnEnd): void {
    this.#end ??= how;
    this.#wake?.();
  }

  /** The session is no longer in its server's memory. This does not affect a turn that has not started. */
  interrupted(how: "lost" | "unloaded"): void {
    if (this.#started) this.end(how);
  }

  /**
   * Resolves when the turn is over.
   *
   * @param isIdle asks the server
   * @param isBlind whether this client does not get the session's events at the moment
   * @param patienceMs how long the server must be idle, in milliseconds, before a prompt that it took counts as one that
   * never begins. 0 if it has begun all of them. A busy server takes a prompt and begins it only later.
   * @returns true if the end was found by asking and not by an event
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
      // Require two idle answers, or one after a `session.idle`, because a single answer may be about the time before a
      // prompt that the server just took.
      const waitMs = isBlind() ? 0 : patienceMs();
      const isSure = waitMs === 0 ? idleBefore || missed : this.#clock.now() - (idleSince ?? 0) >= waitMs;
      if (idle && isSure) {
        this.end("idle");
        return true;
      }
      idleBefore = idle;
      // An early `session.idle` may have been the only one. Ask again soon, and then less and less often.
      if (missed || idle) askAfterMs = ASK_BLIND_MS;
      else askAfterMs = Math.min(2 * askAfterMs, ASK_AFTER_MS);
    }
    return false;
  }

  async #pause(ms: number): Promise<void> {
    // Every turn waits here. An AbortSignal and its error cost many times as much as this timer.
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
