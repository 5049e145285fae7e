/** How many prompts and openings are begun in one round of the event loop. */
const AT_ONCE = 8;

/**
 * Lets a few pass in each round of the event loop, and the others in the rounds after, in order. What it takes to begin a
 * turn is mostly done without a break: a thousand prompts that come at once would otherwise be begun one after the other while
 * nothing that servers send is passed on, for seconds where the processors are busy.
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
