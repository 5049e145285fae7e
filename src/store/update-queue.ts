import { setTimeout as sleep } from "node:timers/promises";
import type { Outcome } from "./batch.js";

/** The operations in which the stores differ. */
export interface UpdateTries<T> {
  readonly deadlineMs: number;
  /**
   * Waits for other writers, for a bounded time. Resolves with a release function that never rejects. A rejection fails
   * all updates in the queue.
   */
  enter(): Promise<() => Promise<void>>;
  /**
   * Applies all changes to the newest state and commits.
   *
   * @returns undefined when another writer was first.
   */
  attempt(changes: readonly ((draft: T) => unknown)[]): Promise<Outcome[] | undefined>;
  /** The error for an update that lost to other writers until the deadline. */
  busy(): Error;
  /** Converts the error of a failed attempt into the error that callers get. */
  failure(error: unknown): unknown;
}

interface Pending<T> {
  change: (draft: T) => unknown;
  resolve: (value: unknown) => void;
  reject: (error: unknown) => void;
  since: number;
}

const MAX_BACKOFF_MS = 40;

/** The updates of one document by this process. They share commits, and try again when another writer was first. */
export class UpdateQueue<T> {
  readonly #tries: UpdateTries<T>;
  readonly #queue: Pending<T>[] = [];
  #worker: Promise<void> | undefined;

  constructor(tries: UpdateTries<T>) {
    this.#tries = tries;
  }

  update<R>(change: (draft: T) => R): Promise<R> {
    return new Promise<R>((resolve, reject) => {
      this.#queue.push({
        change,
        // `change` returned exactly this value.
        resolve: (value) => resolve(value as R),
        reject,
        since: performance.now(),
      });
      this.#worker ??= this.#work();
    });
  }

  /** Resolves when no update is under way; undefined if none is. */
  get pending(): Promise<void> | undefined {
    return this.#worker;
  }

  async #work(): Promise<void> {
    while (this.#queue.length > 0) {
      let leave: () => Promise<void>;
      try {
        leave = await this.#tries.enter();
      } catch (error) {
        rejectAll(this.#queue.splice(0), this.#tries.failure(error));
        continue;
      }
      // Take the queue only after the wait, so that updates requested during the wait join this commit.
      const settle = await this.#commit(this.#queue.splice(0));
      await leave();
      settle();
    }
    this.#worker = undefined;
  }

  /**
   * Resolves with a function that settles the callers. Callers learn their outcome only after the commit, because every
   * outcome depends on it, even a refusal.
   */
  async #commit(batch: Pending<T>[]): Promise<() => void> {
    let waiting = batch;
    try {
      for (let attempt = 0; ; attempt++) {
        waiting = this.#dropExpired(waiting);
        if (waiting.length === 0) return () => undefined;
        const outcomes = await this.#tries.attempt(waiting.map(({ change }) => change));
        if (outcomes !== undefined) return () => settleAll(waiting, outcomes);
        await sleep(Math.random() * Math.min(2 ** attempt, MAX_BACKOFF_MS));
      }
    } catch (error) {
      const failure = this.#tries.failure(error);
      return () => rejectAll(waiting, failure);
    }
  }

  #dropExpired(waiting: Pending<T>[]): Pending<T>[] {
    const now = performance.now();
    const expired = waiting.filter(({ since }) => now - since > this.#tries.deadlineMs);
    for (const { reject } of expired) reject(this.#tries.busy());
    return waiting.filter((pending) => !expired.includes(pending));
  }
}

function rejectAll<T>(waiting: readonly Pending<T>[], failure: unknown): void {
  for (const { reject } of waiting) reject(failure);
}

function settleAll<T>(waiting: readonly Pending<T>[], outcomes: readonly Outcome[]): void {
  for (const [index, { resolve, reject }] of waiting.entries()) {
    const outcome = outcomes[index];
    if (outcome?.ok) resolve(outcome.value);
    else reject(outcome?.error);
  }
}
