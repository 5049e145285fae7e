/**
 * What a host needs. Memory is from what was measured (`npx tsx bench/memory.ts` measures again, and fails when these are too
 * small), disk and processor time are allowances:
 * Node 20.20, runtime 1.0.85, Linux x64, the built-in echo model. What tools take that a model runs, nobody can know.
 */

const MB = 1024 * 1024;

/** `serve` and its front door, resident (`bench/serve.ts` holds it below that with 50 idle servers). */
export const SERVE_MEMORY = 80 * MB;
/** One server after its first turn, private memory. */
export const SERVER_MEMORY = 64 * MB;
/** Each session that had a turn, beyond that. */
export const SESSION_MEMORY = 3 * MB;
/** Logs of one server at the defaults (`serve.logMaxSize` times `serve.logFiles` and the current one), and its home. */
const SERVER_DISK = 64 * MB;
/** One session's history and checkpoints on disk. */
const SESSION_DISK = 4 * MB;

/** What one host is meant to carry at a time. */
export interface Capacity {
  servers: number;
  /** In memory, of all servers together. */
  sessions: number;
}

/** Bytes of memory, in whole steps of 64 MB. */
export function memoryBytes({ servers, sessions }: Capacity): number {
  const bytes = SERVE_MEMORY + servers * SERVER_MEMORY + sessions * SESSION_MEMORY;
  return Math.ceil(bytes / (64 * MB)) * 64 * MB;
}

/**
 * Thousandths of a core. An idle host with 50 servers takes 16 of them (`bench/serve.ts`). The rest is an allowance that
 * nobody measured, so that many users' turns at once still answer their health probes.
 */
export function processorMillis({ servers }: Capacity): number {
  return 100 + 10 * servers;
}

/** Whole GiB for what a host keeps by itself: logs, homes, connection tokens, and the sessions unless they are shared. */
export function diskGib({ servers, sessions }: Capacity, withSessions: boolean): number {
  // Sessions stay on disk for their time to live, long after they left the memory: ten times as many.
  const bytes = servers * SERVER_DISK + (withSessions ? 10 * sessions * SESSION_DISK : 0);
  return Math.max(1, Math.ceil(bytes / (1024 * MB)));
}
