/**
 * How long the result of a trial is valid, in milliseconds. After that, the trial runs again, because somebody may
 * install or remove a program while `serve` runs.
 */
const COUNTS_MS = 60_000;

/** Caches the results of trials in this process, but not those of trials that throw. */
export class Trials<Key, Result> {
  readonly #known = new Map<Key, { begun: number; result: Promise<Result> }>();

  /** Returns the cached result while it is valid. Otherwise, runs `attempt`. */
  async of(key: Key, attempt: () => Promise<Result>): Promise<Result> {
    const now = performance.now();
    const known = this.#known.get(key);
    if (known !== undefined && now - known.begun < COUNTS_MS) return await known.result;
    const result = attempt();
    this.#known.set(key, { begun: now, result });
    try {
      return await result;
    } catch (error) {
      this.#known.delete(key);
      throw error;
    }
  }
}
