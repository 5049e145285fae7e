import { applyChanges, type Outcome, type Parse } from "../../batch.js";
import { UpdateQueue } from "../../update-queue.js";
import { busyError, mediumError } from "../failures.js";
import { commitRevision, type Parent, type StepHook } from "./commit.js";
import { keepEvidence } from "./quarantine.js";

/** The newest state, which is the parent of the next revision. */
export interface Base extends Parent {
  data: string;
  /** Unreadable revisions above `rev`. */
  damaged: readonly number[];
  /** Whether to write this state even if nothing changes, because one of its files is damaged. */
  mend: boolean;
}

/** The properties in which kinds of documents differ. */
export interface DocumentSpec<T> {
  readonly folder: string;
  /** How many revisions to keep. At least 2, because a damaged head needs a revision to fall back to. */
  readonly keep: number;
  readonly deadlineMs: number;
  readonly onStep: StepHook | undefined;
  readonly parse: Parse<T>;
  /** Runs before each attempt. Checks the state folder, and may create missing folders. */
  prepare(): void;
  /** Reads the newest state. Throws if there is none or if it is unreadable. */
  load(): Base;
  /** Waits for other writers, for a bounded time. Resolves with a release function that never rejects. */
  enter(): Promise<() => Promise<void>>;
  /** Runs after each commit, before the callers learn about it. It must not reject, because the commit stands. */
  committed(rev: number, data: string): Promise<void>;
}

/** One document that any number of processes may change. The updates of this process share commits. */
export class Document<T> {
  readonly #spec: DocumentSpec<T>;
  readonly #updates: UpdateQueue<T>;

  constructor(spec: DocumentSpec<T>) {
    this.#spec = spec;
    const { deadlineMs, folder } = spec;
    this.#updates = new UpdateQueue({
      deadlineMs,
      enter: () => spec.enter(),
      attempt: (changes) => this.#attempt(changes),
      busy: () =>
        busyError(folder, `could not be changed within ${deadlineMs} ms, because other writers kept changing it`),
      failure: (error) => mediumError("write", folder, error),
    });
  }

  update<R>(change: (draft: T) => R): Promise<R> {
    return this.#updates.update(change);
  }

  /** Resolves when no update is under way; undefined if none is. */
  get pending(): Promise<void> | undefined {
    return this.#updates.pending;
  }

  async #attempt(changes: readonly ((draft: T) => unknown)[]): Promise<Outcome[] | undefined> {
    const { folder, keep, onStep, parse } = this.#spec;
    this.#spec.prepare();
    const base = this.#spec.load();
    const { data, outcomes } = applyChanges(base.data, parse, changes);
    if (data === base.data && !base.mend) return outcomes;
    await keepEvidence(folder, base.damaged);
    if (!(await commitRevision({ folder, parent: base, data, keep, onStep }))) return undefined;
    await this.#spec.committed(base.next, data);
    return outcomes;
  }
}
