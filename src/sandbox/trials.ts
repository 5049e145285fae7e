/**
 * How long the result of a trial counts, in milliseconds. Then it is tried again, because somebody may install or
 * remove a program while `serve` runs.
 */
const COUNTS_MS = 60_000;

/** The results of the trials of this process. A trial that throws does not count. */
export class Trials<Key, Result> {
  readonly #known = new Map<Key, { begun: number; result: Promise<Result> }>();

  /** The result of a trial that still counts, or else of a new one. */
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
