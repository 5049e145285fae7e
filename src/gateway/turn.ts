import type { TurnLease } from "../sessions/lease-seen.js";
import type { ServerRecord } from "../store/store.js";

/** How often a turn of which nothing is heard is asked after, in milliseconds. */
const ASK_AFTER_MS = 15_000;
/** The same for a session whose events this client does not get: nothing else tells of the end. */
const ASK_BLIND_MS = 250;
/** After so long without an answer to a prompt the server is asked all the same, in milliseconds: it may never answer it. */
const UNANSWERED_MS = 30_000;

export type TurnEnd = "idle" | "refused" | "lost" | "unloaded" | "closed";

/**
 * One turn of a session, as one client has it: from the first prompt that was let through until the session is idle.
 * Prompts that come meanwhile belong to it, as they do on a bare server.
 */
export class Turn {
  /** Null while it waits for others. */
  #started = false;
  #end: TurnEnd | null = null;
  #unanswered = 0;
  #accepted = 0;
  /** When the last prompt went out, by `performance.now()`. */
  #sentAt = 0;
  #idleMissed = false;
  #wake: (() => void) | undefined;
  lease: TurnLease | undefined;
  /** The server on which the turn is marked: whoever drains that waits for it. */
  marked: ServerRecord | undefined;

  /** Whether prompts may go out now. */
  get active(): boolean {
    return this.#started && this.#end === null;
  }

  get over(): TurnEnd | null {
    return this.#end;
  }

  /** Whether the server took a prompt: only then anything has happened. */
  get accepted(): boolean {
    return this.#accepted > 0;
  }

  start(lease: TurnLease | undefined): void {
    this.lease = lease;
    this.#started = true;
  }

  /** Whether a prompt went out that was not refused: then something may be going on. */
  get begun(): boolean {
    return this.#accepted + this.#unanswered > 0;
  }

  /** A prompt goes out. */
  sent(): void {
    this.#unanswered++;
    this.#sentAt = performance.now();
  }

  /** A prompt that the server took goes out again: the server has ended and had not begun with it. */
  sentAgain(): void {
    this.#accepted--;
    this.sent();
  }

  /** The server took it, or refused it. */
  answered(taken: boolean): void {
    this.#unanswered--;
    if (taken) this.#accepted++;
    else if (this.#accepted === 0 && this.#unanswered === 0) this.end("refused");
    if (this.#idleMissed && this.#unanswered === 0) this.#wake?.();
  }

  /**
   * The session is idle. While this turn waits for its beginning, another's is over. While a prompt is unanswered, or was taken
   * and not begun, that may be the end of what came before it, too: the server is asked then.
   *
   * @param hasBegunAll whether all prompts have begun that the server took from this client
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

  /** Its client gets no events of the session any more. */
  unheard(): void {
    this.#wake?.();
  }

  end(how: TurnEnd): void {
    this.#end ??= how;
    this.#wake?.();
  }

  /** The session is not in its server's memory any more. A turn that has not begun loses nothing by that. */
  interrupted(how: "lost" | "unloaded"): void {
    if (this.#started) this.end(how);
  }

  /**
   * Resolves when it is over.
   *
   * @param isIdle asks the server
   * @param isBlind whether this client does not get the session's events, at the moment
   * @returns whether that was found out by asking: then no event has ended it
   */
  async ended(isIdle: () => Promise<boolean>, isBlind: () => boolean): Promise<boolean> {
    let idleBefore = false;
    let askAfterMs = ASK_AFTER_MS;
    while (this.#end === null) {
      if (!this.#idleMissed || this.#unanswered > 0) await this.#pause(isBlind() ? ASK_BLIND_MS : askAfterMs);
      if (this.#end !== null) return false;
      if (this.#unanswered > 0 && performance.now() - this.#sentAt < UNANSWERED_MS) continue;
      const missed = this.#idleMissed;
      this.#idleMissed = false;
      const askedAt = this.#sentAt;
      const idle = await isIdle();
      if (this.#end !== null) return false;
      // Another prompt went out while the server was asked, and its answer is about the time before that.
      if (this.#sentAt !== askedAt) continue;
      // Twice, unless it said so: a prompt that was just taken may not have begun.
      if (idle && (idleBefore || missed)) {
        this.end("idle");
        return true;
      }
      idleBefore = idle;
      // An end that came early may have been the only one: it is asked again soon, and less and less often.
      if (missed && !idle) askAfterMs = ASK_BLIND_MS;
      else askAfterMs = Math.min(2 * askAfterMs, ASK_AFTER_MS);
    }
    return false;
  }

  async #pause(ms: number): Promise<void> {
    // In every turn: an AbortSignal and the error that it makes cost many times as much as this timer.
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, ms);
      timer.unref();
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    this.#wake = undefined;
  }
}
