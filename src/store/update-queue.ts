import { setTimeout as sleep } from "node:timers/promises";
import { FleetError } from "../base/errors.js";
import { busyError } from "./failures.js";

/** The state of a document from which an update starts. */
export interface Base {
  data: string;
  /** Whether to commit the data even if nothing changes, because the store has a damaged copy of it. */
  mend?: boolean;
}

/** Keeps track of the writes of a store, so that `close` can wait for them. */
export class Writes {
  readonly #underWay = new Set<Promise<unknown>>();

  async track<T>(write: Promise<T>): Promise<T> {
    this.#underWay.add(write);
    try {
      return await write;
    } finally {
      this.#underWay.delete(write);
    }
  }

  async settled(): Promise<void> {
    await Promise.allSettled(this.#underWay);
  }
}

/** The operations that differ between the stores. */
export interface UpdateTries<T, B extends Base> {
  readonly where: string;
  /** How long an update competes with other writers before it fails with `FLEET_STATE_BUSY`, in milliseconds. */
  readonly deadlineMs: number;
  /**
   * Waits for other writers, for a bounded time. Resolves with a release function that never rejects. If `enter` rejects,
   * all updates in the queue fail. Without this method, updates do not wait.
   */
  enter?(): Promise<() => Promise<void>>;
  /** Reads the newest state. */
  load(): B | Promise<B>;
  /** Turns the data into the value that callers see. Every call returns a private copy. */
  parse(data: string): T;
  /** Replaces `base`. @returns false if another writer was first. The update then runs again. */
  commit(base: B, data: string): Promise<boolean>;
  /** Converts the error of a failed attempt into the error that callers get. */
  failure?(error: unknown): unknown;
}

interface Pending<T> {
  change: (draft: T) => unknown;
  resolve: (value: unknown) => void;
  reject: (error: unknown) => void;
  since: number;
}

const MAX_BACKOFF_MS = 40;

/** The updates of one document by this process. Updates that wait at the same time share one commit. */
export class UpdateQueue<T, B extends Base = Base> {
  readonly #tries: UpdateTries<T, B>;
  readonly #queue: Pending<T>[] = [];
  #isWorking = false;

  constructor(tries: UpdateTries<T, B>) {
    this.#tries = tries;
  }

  update<R>(change: (draft: T) => R): Promise<R> {
    return new Promise<R>((resolve, reject) => {
      const settled = (value: unknown) => resolve(value as R); // `value` is what `change` returned
      this.#queue.push({ change, resolve: settled, reject, since: performance.now() });
      if (!this.#isWorking) void this.#work();
    });
  }

  get isIdle(): boolean {
    return !this.#isWorking;
  }

  async #work(): Promise<void> {
    this.#isWorking = true;
    while (this.#queue.length > 0) {
      let leave: (() => Promise<void>) | undefined;
      try {
        leave = await this.#tries.enter?.();
      } catch (error) {
        rejectAll(this.#queue.splice(0), this.#failure(error));
        continue;
      }
      // Take the queue only after the wait, so that this commit includes updates that were requested during the wait.
      const settle = await this.#commit(this.#queue.splice(0));
      await leave?.();
      settle();
    }
    this.#isWorking = false;
  }

  /**
   * Commits a batch of updates.
   *
   * @returns a function that settles the promises of the callers. Call it after the release function of `enter`.
   */
  async #commit(batch: Pending<T>[]): Promise<() => void> {
    let waiting = batch;
    try {
      for (let attempt = 0; ; attempt++) {
        waiting = this.#dropExpired(waiting);
        if (waiting.length === 0) return () => undefined;
        const base = await this.#tries.load();
        const { data, settle } = this.#apply(base.data, waiting);
        const isUnchanged = data === base.data && base.mend !== true;
        if (isUnchanged || (await this.#tries.commit(base, data))) return settle;
        await sleep(Math.random() * Math.min(2 ** attempt, MAX_BACKOFF_MS));
      }
    } catch (error) {
      const failure = this.#failure(error);
      return () => rejectAll(waiting, failure);
    }
  }

  #dropExpired(waiting: Pending<T>[]): Pending<T>[] {
    const { where, deadlineMs } = this.#tries;
    const now = performance.now();
    return waiting.filter(({ since, reject }) => {
      if (now - since <= deadlineMs) return true;
      reject(busyError(where, `could not be changed within ${deadlineMs} ms, because other writers kept changing it`));
      return false;
    });
  }

  /**
   * Runs the changes in order. If a change throws, discards its draft.
   *
   * @returns the new data, and a function that settles the promises of the callers
   */
  #apply(data: string, waiting: readonly Pending<T>[]): { data: string; settle: () => void } {
    let current = data;
    const outcomes = waiting.map(({ change, resolve, reject }) => {
      try {
        const draft = this.#tries.parse(current);
        const value = change(draft);
        if (value instanceof Promise) {
          value.catch(() => "the caller gets the next error instead");
          const message = "A change to the store must be synchronous; this one returned a promise.";
          throw new FleetError("FLEET_INTERNAL", message);
        }
        current = JSON.stringify(draft);
        return () => resolve(value);
      } catch (error) {
        return () => reject(error);
      }
    });
    const settle = () => {
      for (const outcome of outcomes) outcome();
    };
    return { data: current, settle };
  }

  #failure(error: unknown): unknown {
    return this.#tries.failure?.(error) ?? error;
  }
}

/** The updates of many documents. A document has a queue only while it is being updated. */
export class UpdateQueues<T> {
  readonly #open: (id: string) => UpdateQueue<T>;
  readonly #queues = new Map<string, UpdateQueue<T>>();

  constructor(open: (id: string) => UpdateQueue<T>) {
    this.#open = open;
  }

  async update<R>(id: string, change: (draft: T) => R): Promise<R> {
    const queue = this.#queues.get(id) ?? this.#open(id);
    this.#queues.set(id, queue);
    try {
      return await queue.update(change);
    } finally {
      if (queue.isIdle) this.#queues.delete(id);
    }
  }
}

function rejectAll<T>(waiting: readonly Pending<T>[], failure: unknown): void {
  for (const { reject } of waiting) reject(failure);
}
