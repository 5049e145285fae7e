/** How many wrong tokens an address may show at once, and how long it takes until it may show one more. */
const BURST = 10;
const REFILL_MS = 6_000;
/** How many addresses are remembered: the oldest are forgotten first, so that nobody can fill the memory. */
const MAX_ADDRESSES = 10_000;

interface Failures {
  count: number;
  sinceMs: number;
}

/** Counts wrong tokens by remote address. Whoever showed too many is not listened to for a while. */
export class Attempts {
  readonly #failures = new Map<string, Failures>();
  readonly #now: () => number;

  /** @param now a clock in milliseconds that never goes back; replaced in tests */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  /** How long the address has to wait, in milliseconds; 0 if it may try. */
  waitMs(address: string): number {
    const failures = this.#failures.get(address);
    if (failures === undefined) return 0;
    return Math.max(0, (this.#left(failures) - BURST + 1) * REFILL_MS);
  }

  failed(address: string): void {
    const known = this.#failures.get(address);
    const count = (known === undefined ? 0 : this.#left(known)) + 1;
    this.#failures.delete(address);
    this.#failures.set(address, { count, sinceMs: this.#now() });
    const oldest = this.#failures.keys().next().value;
    if (this.#failures.size > MAX_ADDRESSES && oldest !== undefined) this.#failures.delete(oldest);
  }

  /** What is left of the failures, each of which is forgiven after its time. */
  #left({ count, sinceMs }: Failures): number {
    return Math.max(0, count - (this.#now() - sinceMs) / REFILL_MS);
  }
}
