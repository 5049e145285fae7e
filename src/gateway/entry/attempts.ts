import type { Clock } from "../../runtime/clock.js";

/**
 * How long to delay the answer to the first wrong token, in milliseconds. Each further wrong token with the same id
 * doubles the delay.
 */
const FIRST_DELAY_MS = 250;
const LONGEST_DELAY_MS = 8_000;
/** The count of an id's failures falls by one every this many milliseconds. */
const FORGIVEN_MS = 10_000;
/**
 * How many ids the door remembers. For another one, it forgets the id that failed longest ago, so nobody can fill the
 * memory.
 */
const MAX_IDS = 10_000;
/** How many answers the door delays at the same time. To delay another one, it sends the oldest of them at once. */
const MAX_DELAYED = 256;

interface Failures {
  count: number;
  sinceMs: number;
}

/**
 * Slows down clients that guess tokens. Failures are counted by the id in the token, not by address, because all clients
 * behind one proxy have the same address. A good token is never delayed or refused.
 */
export class Attempts {
  readonly #failures = new Map<string, Failures>();
  readonly #delayed = new Set<() => void>();
  readonly #clock: Pick<Clock, "now">;

  /** @param clock replaced in tests */
  constructor(clock: Pick<Clock, "now"> = performance) {
    this.#clock = clock;
  }

  /**
   * Counts a wrong token, and resolves when the door may answer.
   *
   * @param tokenId undefined if the text does not have the form of a token
   */
  async failed(tokenId: string | undefined): Promise<void> {
    const ms = tokenId === undefined ? FIRST_DELAY_MS : this.#count(tokenId);
    const [longest] = this.#delayed;
    if (this.#delayed.size >= MAX_DELAYED) longest?.();
    await new Promise<void>((resolve) => {
      const answer = () => {
        clearTimeout(timer);
        this.#delayed.delete(answer);
        resolve();
      };
      const timer = setTimeout(answer, ms);
      timer.unref();
      this.#delayed.add(answer);
    });
  }

  /** @returns how long to delay the answer, in milliseconds. */
  #count(tokenId: string): number {
    const known = this.#failures.get(tokenId);
    const count = (known === undefined ? 0 : this.#left(known)) + 1;
    this.#failures.delete(tokenId);
    this.#failures.set(tokenId, { count, sinceMs: this.#clock.now() });
    const oldest = this.#failures.keys().next().value;
    if (this.#failures.size > MAX_IDS && oldest !== undefined) this.#failures.delete(oldest);
    return Math.min(FIRST_DELAY_MS * 2 ** Math.floor(count - 1), LONGEST_DELAY_MS);
  }

  #left({ count, sinceMs }: Failures): number {
    return Math.max(0, count - (this.#clock.now() - sinceMs) / FORGIVEN_MS);
  }
}
