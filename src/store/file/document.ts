import { applyChanges, type Outcome, type Parse } from "../batch.js";
import { UpdateQueue } from "../update-queue.js";
import { commitRevision, type Parent, type StepHook } from "./commit.js";
import { busyError, mediumError } from "./failures.js";
import { keepEvidence } from "./quarantine.js";

/** The newest state, as the parent of the next one. */
export interface Base extends Parent {
  data: string;
  /** Revisions above `rev` that are not readable. */
  damaged: readonly number[];
  /** Whether to write this state again although nothing changed, because some file of it is damaged. */
  mend: boolean;
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

/** One document, changed by any number of processes. The updates of this process share commits. */
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
      busy: () => busyError(folder, `could not be changed within ${deadlineMs} ms: other writers were always first`),
      failure: (error) => mediumError("write", folder, error),
    });
  }

  update<R>(change: (draft: T) => R): Promise<R> {
    return this.#updates.update(change);
  }

  /** Resolves when no update is under way; undefined when that is so already. */
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
