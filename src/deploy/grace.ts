/**
 * What `serve` takes to end beyond `drain.timeout`, at most, in milliseconds: closing the pool (one operation of the store:
 * 5 s), servers that another command has in hand (10 s), asking a busy server a last time (0.5 s), SIGTERM (5 s) and
 * SIGKILL (5 s) of a server, and recording it (one more operation).
 */
const ENDING_MS = 5_000 + 10_000 + 500 + 5_000 + 5_000 + 5_000;

/** After how many whole seconds a `serve` that was told to end may be killed. */
export function stopGraceSeconds(drainTimeoutMs: number): number {
  return Math.ceil((drainTimeoutMs + ENDING_MS) / 1000);
}

/**
 * How long a pod waits before `serve` hears of its end: the removal from the Service's endpoints starts at the same moment,
 * and takes about that long to reach every node. New connections then go elsewhere instead of being refused.
 */
export const LEAVE_ENDPOINTS_SECONDS = 5;
