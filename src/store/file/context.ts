import type { Writes } from "../update-queue.js";
import type { StepHook } from "./commit/commit.js";
import type { Instant } from "./records/lease-clock.js";

export interface StoreContext {
  /** The path of the state folder. */
  root: string;
  /** How long one update retries before it fails with `FLEET_STATE_BUSY`, in milliseconds. */
  deadlineMs: number;
  onStep: StepHook | undefined;
  /** Reads the clock for leases. */
  leaseNow: () => Instant;
  writes: Writes;
  /** Reports a problem that did not make the operation fail. */
  warn: (message: string) => void;
  /** Throws if the state folder is unsafe. */
  checkRoot: () => void;
  /** Like `checkRoot`, but creates the state folder if necessary. */
  ensureRoot: () => void;
}
