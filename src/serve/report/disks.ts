import { statSync } from "node:fs";
import { access, constants, statfs } from "node:fs/promises";
import { systemCode } from "../../errors.js";
import type { ServerRecord } from "../../model/server.js";
import { logPath } from "../../runtime/files/server-folder.js";
import type { ServeContext } from "../context.js";
import { logFailure } from "../failures.js";

/** A disk is almost full when its free space is below both limits: this many bytes, and this share of its size. */
const LOW_DISK_BYTES = 64 * 1024 * 1024;
const LOW_DISK_SHARE = 0.02;
/** A disk with fewer free bytes than this counts as full, because not even the registry of a small fleet fits on it. */
const FULL_DISK_BYTES = 16 * 1024;

/** Checks the disk that holds the state, and the disks of the servers' logs. Logs each problem once. */
export class Disks {
  readonly #context: ServeContext;
  #isLow = false;
  #problem: string | null = null;
  /** Ids of the servers whose log we warned about. */
  #fullLogs = new Set<string>();

  constructor(context: ServeContext) {
    this.#context = context;
  }

  /**
   * Why nothing can be written to the disk that holds the state, as of the last check. Null if the disk can be written
   * to.
   */
  get problem(): string | null {
    return this.#problem;
  }

  /** Checks the disk that holds the state. @returns its free space in bytes, or null if the check failed */
  async checkState(): Promise<number | null> {
    const { stateRoot, log } = this.#context;
    try {
      const { freeBytes, low, problem } = await diskOf(stateRoot);
      const known = this.#problem;
      this.#problem = problem === null ? null : `the disk that holds the state ${problem}`;
      if (this.#problem !== null && known === null) log("error", this.#problem, { freeBytes, stateRoot });
      if (low && !this.#isLow) log("warn", "the disk that holds the state is almost full", { freeBytes, stateRoot });
      this.#isLow = low;
      return freeBytes;
    } catch (error) {
      logFailure(this.#context, "the disk that holds the state could not be checked", error);
      return null;
    }
  }

  /**
   * Checks the disks of the logs that are not on the same disk as the state. A server that cannot write to its log
   * keeps running, and its log has a gap. The warning in the log of `serve` explains this gap.
   */
  async checkLogs(servers: readonly ServerRecord[]): Promise<void> {
    const { stateRoot, log } = this.#context;
    const known = this.#fullLogs;
    this.#fullLogs = new Set();
    const stateDisk = diskIdOf(stateRoot);
    for (const { id, home } of servers) {
      const path = logPath(home);
      const disk = diskIdOf(path);
      if (disk === undefined || disk === stateDisk) continue;
      try {
        const { problem, freeBytes } = await diskOf(path);
        if (problem === null) continue;
        this.#fullLogs.add(id);
        if (known.has(id)) continue;
        log("warn", `server ${id} writes its log to a disk that ${problem}`, { server: id, path, freeBytes });
      } catch (error) {
        logFailure(this.#context, `the disk of the log of server ${id} could not be checked`, error, { server: id });
      }
    }
  }
}

function diskIdOf(path: string): number | undefined {
  return statSync(path, { throwIfNoEntry: false })?.dev;
}

/**
 * @returns `problem`: why the disk cannot be written to, in words that follow "the disk"; null if it can be written to
 */
async function diskOf(path: string): Promise<{ freeBytes: number; low: boolean; problem: string | null }> {
  const { bsize, bavail, blocks, files, ffree } = await statfs(path);
  const freeBytes = bsize * bavail;
  // A file system without a fixed number of files may report 0 for both `files` and `ffree`.
  const full = freeBytes < FULL_DISK_BYTES || (files > 0 && ffree === 0);
  return {
    freeBytes,
    low: freeBytes < Math.min(LOW_DISK_BYTES, bsize * blocks * LOW_DISK_SHARE),
    problem: full ? "is full" : await unwritable(path),
  };
}

/**
 * Why the path cannot be written to, for example because the kernel made the disk read-only after an error. The words
 * follow "the disk". Null if the path can be written to.
 */
async function unwritable(path: string): Promise<string | null> {
  try {
    await access(path, constants.W_OK);
    return null;
  } catch (error) {
    return `cannot be written (${systemCode(error) ?? String(error)})`;
  }
}
