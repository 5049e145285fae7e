import type { ServerRecord } from "../../model/server.js";
import { type LaunchedProcess, processesByLaunch } from "../../runtime/process/launches.js";
import { system } from "../../system/system.js";

/**
 * All processes of the servers: the runtimes, and everything that their sessions started. Finding them takes two file
 * reads for every process on this machine, so this class uses each result for `intervalMs` milliseconds.
 */
export class ServerProcesses {
  readonly #stateRoot: string;
  readonly #intervalMs: number;
  #lookedAt = Number.NEGATIVE_INFINITY;
  #processes = new Map<string, LaunchedProcess[]>();
  /** The memory of each launch in bytes, by launch id. */
  readonly #memory = new Map<string, number>();

  constructor(stateRoot: string, intervalMs: number) {
    this.#stateRoot = stateRoot;
    this.#intervalMs = intervalMs;
  }

  /**
   * The processes of a launch, including its runtime. Empty for a launch that began after the processes were last read.
   */
  of(launchId: string): readonly LaunchedProcess[] {
    this.#look();
    return this.#processes.get(launchId) ?? [];
  }

  /** The private memory of a server's runtime and of everything that its sessions started, in bytes. */
  memoryOf({ launchId, process }: ServerRecord): number {
    const processes = this.of(launchId ?? "");
    const known = this.#memory.get(launchId ?? "");
    if (known !== undefined) return known;
    const pids = new Set([
      ...processes.map(({ identity }) => identity.pid),
      ...(process === null ? [] : [process.pid]),
    ]);
    const bytes = [...pids].reduce((sum, pid) => sum + (system().processes.privateMemoryBytes(pid) ?? 0), 0);
    this.#memory.set(launchId ?? "", bytes);
    return bytes;
  }

  #look(): void {
    const now = performance.now();
    if (now - this.#lookedAt < this.#intervalMs) return;
    this.#lookedAt = now;
    this.#memory.clear();
    this.#processes = processesByLaunch(this.#stateRoot);
  }
}
