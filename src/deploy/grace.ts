/**
 * The longest time that `serve` needs to stop, beyond `drain.timeout`, in milliseconds: closing the pool (one
 * store operation: 5 s), servers that another command is working on (10 s), asking a busy server one last time (0.5 s),
 * SIGTERM (5 s) and SIGKILL (5 s) of a server, and recording its end (one more store operation).
 */
const ENDING_MS = 5_000 + 10_000 + 500 + 5_000 + 5_000 + 5_000;

/** Returns the number of whole seconds after which a stopping `serve` may be killed. */
export function stopGraceSeconds(drainTimeoutMs: number): number {
  return Math.ceil((drainTimeoutMs + ENDING_MS) / 1000);
}

/**
 * How long a pod waits before `serve` gets its SIGTERM. Kubernetes removes the pod from the Service's endpoints at the
 * same moment, and that takes about this long to reach every node.
 */
export const LEAVE_ENDPOINTS_SECONDS = 5;
