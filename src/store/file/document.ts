import { setTimeout as sleep } from "node:timers/promises";
import { applyChanges, type Outcome, type Parse } from "./batch.js";
import { commitRevision, type Parent, type StepHook } from "./commit.js";
import { busyError, mediumError } from "./failures.js";
import { keepEvidence } from "./quarantine.js";

/** The newest state, as the parent of the next one. */
export interface Base extends Parent {
  data: string;
  /** Revisions above `rev` that are not readable. */
  damaged: readonly number[];
}

/** What differs between the registry and a session record. */
export interface DocumentSpec<T> {
  readonly folder: string;
  /** How many revisions stay. At least 2: a damaged head must have one to fall back to. */
  readonly keep: number;
  readonly deadlineMs: number;
  readonly onStep: StepHook | undefined;
  readonly parse: Parse<T>;
  /** Makes the folder, where an update may. */
  prepare(): void;
  /** Reads the newest state; throws when there is none, or none that is readable. */
  load(): Base;
  /** Waits for other writers, for a bounded time. Resolves with the release, which does not reject. */
  enter(): Promise<() => Promise<void>>;
  /** Runs after each commit, before its callers are told. Does not reject: the commit stands. */
  committed(rev: number, data: string): Promise<void>;
}

interface Pending<T> {
  change: (draft: T) => unknown;
  resolve: (value: unknown) => void;
  reject: (error: unknown) => void;
  since: number;
}

const MAX_BACKOFF_MS = 40;

/** One document, changed by any number of processes. The updates of this process share commits. */
export class Document<T> {
  readonly #spec: DocumentSpec<T>;
  readonly #queue: Pending<T>[] = [];
  #worker: Promise<void> | undefined;

  constructor(spec: DocumentSpec<T>) {
    this.#spec = spec;
  }

  update<R>(change: (draft: T) => R): Promise<R> {
    return new Promise<R>((resolve, reject) => {
      this.#queue.push({
        change,
        // The outcome is the very value that `change` returned.
        resolve: (value) => resolve(value as R),
        reject,
        since: performance.now(),
      });
      this.#worker ??= this.#work();
    });
  }

  /** Resolves when no update is under way; undefined when that is so already. */
  get pending(): Promise<void> | undefined {
    return this.#worker;
  }

  async #work(): Promise<void> {
    while (this.#queue.length > 0) {
      const leave = await this.#spec.enter();
      // Taken only now: what was asked for during the wait goes into the same commit.
      const settle = await this.#commit(this.#queue.splice(0));
      await leave();
      settle();
    }
    this.#worker = undefined;
  }

  /** Resolves with how to tell the callers. Every outcome rests on the commit, a refusal too, so none is told before. */
  async #commit(batch: Pending<T>[]): Promise<() => void> {
    let waiting = batch;
    try {
      for (let attempt = 0; ; attempt++) {
        waiting = this.#dropExpired(waiting);
        if (waiting.length === 0) return () => undefined;
        const outcomes = await this.#attempt(waiting);
        if (outcomes !== undefined) return () => settleAll(waiting, outcomes);
        await sleep(Math.random() * Math.min(2 ** attempt, MAX_BACKOFF_MS));
      }
    } catch (error) {
      const failure = mediumError("write", this.#spec.folder, error);
      return () => {
        for (const { reject } of waiting) reject(failure);
      };
    }
  }

  /** @returns undefined when another writer was first. */
  async #attempt(waiting: readonly Pending<T>[]): Promise<Outcome[] | undefined> {
    const { folder, keep, onStep, parse } = this.#spec;
    this.#spec.prepare();
    const base = this.#spec.load();
    const changes = waiting.map(({ change }) => change);
    const { data, outcomes } = applyChanges(base.data, parse, changes);
    if (data === base.data) return outcomes;
    await keepEvidence(folder, base.damaged);
    if (!(await commitRevision({ folder, parent: base, data, keep, onStep }))) return undefined;
    await this.#spec.committed(base.next, data);
    return outcomes;
  }

  #dropExpired(waiting: Pending<T>[]): Pending<T>[] {
    const now = performance.now();
    const { deadlineMs, folder } = this.#spec;
    const expired = waiting.filter(({ since }) => now - since > deadlineMs);
    for (const { reject } of expired) {
      reject(busyError(folder, `could not be changed within ${deadlineMs} ms: other writers were always first`));
    }
    return waiting.filter((pending) => !expired.includes(pending));
  }
}

function settleAll<T>(waiting: readonly Pending<T>[], outcomes: readonly Outcome[]): void {
  for (const [index, { resolve, reject }] of waiting.entries()) {
    const outcome = outcomes[index];
    if (outcome?.ok) resolve(outcome.value);
    else reject(outcome?.error);
  }
}
