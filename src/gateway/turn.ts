import { setTimeout as delay } from "node:timers/promises";
import type { HeldLease } from "../sessions/leases.js";
import type { ServerRecord } from "../store/store.js";

/** How often a turn of which nothing is heard is asked after, in milliseconds. */
const ASK_AFTER_MS = 15_000;
/** The same for a session whose events this client does not get: nothing else tells of the end. */
const ASK_BLIND_MS = 250;

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
  #idleMissed = false;
  #wake: (() => void) | undefined;
  lease: HeldLease | undefined;
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

  start(lease: HeldLease | undefined): void {
    this.lease = lease;
    this.#started = true;
  }

  /** A prompt goes out. */
  sent(): void {
    this.#unanswered++;
  }

  /** The server took it, or refused it. */
  answered(taken: boolean): void {
    this.#unanswered--;
    if (taken) this.#accepted++;
    else if (this.#accepted === 0 && this.#unanswered === 0) this.end("refused");
    if (this.#idleMissed && this.#unanswered === 0) this.#wake?.();
  }

  /**
   * The session is idle. While a prompt is unanswered that may be the end of what came before it: the server is asked then.
   */
  idle(): void {
    if (this.#unanswered === 0) this.end("idle");
    else this.#idleMissed = true;
  }

  end(how: TurnEnd): void {
    this.#end ??= how;
    this.#wake?.();
  }

  /**
   * Resolves when it is over.
   *
   * @param isIdle asks the server
   * @param blind whether this client does not get the session's events
   */
  async ended(isIdle: () => Promise<boolean>, blind: boolean): Promise<void> {
    let idleBefore = false;
    while (this.#end === null) {
      if (!this.#idleMissed || this.#unanswered > 0) await this.#pause(blind ? ASK_BLIND_MS : ASK_AFTER_MS);
      if (this.#end !== null) return;
      if (this.#unanswered > 0) continue;
      const missed = this.#idleMissed;
      this.#idleMissed = false;
      const idle = await isIdle();
      // Twice, unless it said so: a prompt that was just taken may not have begun.
      if (idle && (idleBefore || missed)) this.end("idle");
      idleBefore = idle;
    }
  }

  async #pause(ms: number): Promise<void> {
    const controller = new AbortController();
    this.#wake = () => controller.abort();
    await delay(ms, undefined, { signal: controller.signal, ref: false }).catch(() => "woken");
    this.#wake = undefined;
  }
}
