import { reason } from "../failures.js";

/** The lines are in the log, but may not survive a loss of power. */
export class UnsyncedError extends Error {
  constructor(cause: unknown) {
    super(reason(cause), { cause });
  }
}
