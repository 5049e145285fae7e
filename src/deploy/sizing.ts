/*
 * Estimates the resources that a host needs, without the tools that a model runs. The memory figures were measured with
 * Node 20.20, runtime 1.0.85, Linux x64 and the echo model: `npx tsx bench/memory.ts` fails if they are too small. Disk
 * and processor time are estimates.
 */

const MB = 1024 * 1024;

/**
 * Resident memory of `serve` and its front door. `bench/serve.ts` checks that it stays below this with 50 idle servers.
 */
export const SERVE_MEMORY = 80 * MB;
/** Private memory of one server after its first turn. */
export const SERVER_MEMORY = 64 * MB;
/** Additional memory of each session that had a turn. */
export const SESSION_MEMORY = 3 * MB;
/** Disk space for one server: its home, and its logs. */
const SERVER_DISK = 64 * MB;
/** Disk space for one session's history and checkpoints. */
const SESSION_DISK = 4 * MB;

export interface Capacity {
  servers: number;
  /** Sessions in memory, on all servers of the host together. */
  sessions: number;
}

/** Threads of one server and of the programs that its agent starts, such as compilers. */
const SERVER_THREADS = 512;
const SERVE_THREADS = 256;

/** The number of processes and threads that a host may have at once. It is far above what the planned servers need. */
export function processLimit({ servers }: Capacity): number {
  return SERVE_THREADS + servers * SERVER_THREADS;
}

/** The memory that a host needs, in bytes, rounded up to a multiple of 64 MB. */
export function memoryBytes({ servers, sessions }: Capacity): number {
  const bytes = SERVE_MEMORY + servers * SERVER_MEMORY + sessions * SESSION_MEMORY;
  return Math.ceil(bytes / (64 * MB)) * 64 * MB;
}

/**
 * The processor time that a host needs, in thousandths of a core. An idle host with 50 servers uses 16 thousandths
 * (`bench/serve.ts`). The rest lets servers answer their health probes while many users have turns at once.
 */
export function processorMillis({ servers }: Capacity): number {
  return 100 + 10 * servers;
}

/**
 * The disk space that a host needs, in whole GiB: for logs, homes, and the sessions unless they are on shared storage.
 */
export function diskGib({ servers, sessions }: Capacity, withSessions: boolean): number {
  // Assume ten times as many sessions on disk as in memory, because a session stays on disk until its TTL is over.
  const bytes = servers * SERVER_DISK + (withSessions ? 10 * sessions * SESSION_DISK : 0);
  return Math.max(1, Math.ceil(bytes / (1024 * MB)));
}
