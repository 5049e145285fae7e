import { type Base as AnyBase, UpdateQueue } from "../../update-queue.js";
import type { StoreContext } from "../context.js";
import { mediumError } from "../failures.js";
import { type Commit, commitRevision, type Parent } from "./commit.js";
import { keepEvidence } from "./damage.js";

/** The newest state of a document. It is the parent of the next revision. */
export interface Base extends Parent, AnyBase {
  /** Unreadable revisions above `rev`. */
  damaged: readonly number[];
}

/** The properties that differ between kinds of documents. */
export interface DocumentSpec<T> extends Pick<Commit, "folder" | "durable"> {
  /** How many revisions to keep. At least 2, because a damaged head needs a revision to fall back to. */
  readonly keep: number;
  readonly parse: (data: string) => T;
  /** Runs before each attempt. Checks the state folder, and may create missing folders. */
  prepare(): void;
  /** Reads the newest state. Throws if the document does not exist or is unreadable. */
  load(): Base;
  /** See `UpdateTries.enter`. */
  enter?(): Promise<() => Promise<void>>;
  /** Runs after each commit, before the updates resolve. It must not reject, because the commit has succeeded. */
  committed?(rev: number, data: string): Promise<void>;
}

/** Creates the queue through which this process updates a document. Other processes may update it at the same time. */
export function documentUpdates<T>(
  { deadlineMs, onStep }: Pick<StoreContext, "deadlineMs" | "onStep">,
  spec: DocumentSpec<T>,
): UpdateQueue<T, Base> {
  const { folder, keep, durable, parse, enter } = spec;
  return new UpdateQueue({
    where: folder,
    deadlineMs,
    parse,
    ...(enter === undefined ? {} : { enter }),
    load: () => {
      spec.prepare();
      return spec.load();
    },
    commit: async (base, data) => {
      await keepEvidence(folder, base.damaged);
      if (!(await commitRevision({ folder, parent: base, data, keep, durable, onStep }))) return false;
      await spec.committed?.(base.next, data);
      return true;
    },
    failure: (error) => mediumError("write", folder, error),
  });
}
