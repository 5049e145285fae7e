import type { StepHook } from "./commit.js";

/** What the documents of one store share. */
export interface StoreContext {
  /** The state folder. */
  root: string;
  /** How long one update is tried. */
  deadlineMs: number;
  onStep: StepHook | undefined;
  /** Tells of a problem that was worked around. */
  warn: (message: string) => void;
  /** Refuses an unsafe state folder. */
  checkRoot: () => void;
  /** The same, and makes it if it is not there. */
  ensureRoot: () => void;
}
