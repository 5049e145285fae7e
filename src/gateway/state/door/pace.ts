/** How many prompts and openings may begin in one round of the event loop. */
const AT_ONCE = 8;

/**
 * Lets a few callers pass in each round of the event loop. The others pass in later rounds, in order.
 *
 * Most of the work that begins a turn blocks the event loop. Without this limit, a thousand prompts that arrive together
 * would begin right after one another, and on a busy machine no frame from a server would be passed on for seconds.
 */
export class Pace {
  readonly #waiting: (() => void)[] = [];
  #passed = 0;

  async pass(): Promise<void> {
    if (this.#passed === 0) setImmediate(() => this.#nextRound());
    this.#passed++;
    if (this.#passed > AT_ONCE) await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  #nextRound(): void {
    this.#passed = 0;
    for (const resolve of this.#waiting.splice(0, AT_ONCE)) {
      this.#passed++;
      resolve();
    }
    if (this.#passed > 0) setImmediate(() => this.#nextRound());
  }
}
