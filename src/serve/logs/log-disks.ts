import { statSync } from "node:fs";
import type { ServerRecord } from "../../model/server.js";
import { logPath } from "../../runtime/files/server-folder.js";
import type { ServeContext } from "../context.js";
import { noteTrouble } from "../trouble.js";
import { diskOf } from "../upkeep/housekeeping.js";

/**
 * Looks at the disks of logs that are not on the same disk as the state. A server keeps running when its log cannot be
 * written. The log then has a gap, and the log of `serve` should explain it to somebody who reads both.
 */
export class LogDisks {
  readonly #context: ServeContext;
  /** Ids of the servers that we warned about. */
  #full = new Set<string>();

  constructor(context: ServeContext) {
    this.#context = context;
  }

  async look(servers: readonly ServerRecord[]): Promise<void> {
    const { stateRoot, log } = this.#context;
    const known = this.#full;
    this.#full = new Set();
    const stateDisk = diskIdOf(stateRoot);
    for (const { id, home } of servers) {
      const path = logPath(home);
      const disk = diskIdOf(path);
      if (disk === undefined || disk === stateDisk) continue;
      try {
        const { problem, freeBytes } = await diskOf(path);
        if (problem === null) continue;
        this.#full.add(id);
        if (known.has(id)) continue;
        log("warn", `server ${id} writes its log to a disk that ${problem}`, { server: id, path, freeBytes });
      } catch (error) {
        noteTrouble(this.#context, `the disk of the log of server ${id} could not be checked`, error, { server: id });
      }
    }
  }
}

function diskIdOf(path: string): number | undefined {
  return statSync(path, { throwIfNoEntry: false })?.dev;
}
