import { lstat, readdir } from "node:fs/promises";
import { join } from "node:path";
import { FleetError, systemCode } from "../base/errors.js";
import type { ServerRecord } from "../base/server.js";
import { writeSize } from "../base/values/measures.js";
import { temporaryFolder } from "../runtime/launch/launch.js";
import { type PoolContext, sessionStateOf } from "./surroundings.js";

/**
 * A measured size is used again for this many milliseconds, or for this many times as long as the measurement took,
 * whichever is longer.
 */
const FRESH_MS = 2_000;
const FRESH_TIMES = 10;
/** How long a measurement may take, in milliseconds. Files that it does not reach in this time do not count. */
const LONGEST_LOOK_MS = 10_000;
const AT_ONCE = 32;
/** Each entry counts as at least this many bytes, because a file system has room for a limited number of entries. */
const ENTRY_BYTES = 4096;

/**
 * Measures how much disk space the files of servers take. The kernel can limit this only on some file systems, and only
 * for a whole system account. So the fleet measures before it begins something that it can still refuse, such as a
 * turn.
 */
export class DiskMeter {
  readonly #context: PoolContext;
  /** By server id. */
  readonly #looks = new Map<string, { freshUntil: number; bytes: Promise<number> }>();

  constructor(context: PoolContext) {
    this.#context = context;
  }

  /**
   * The size of the server's home, sessions and temporary folder, in bytes, from a recent measurement. Infinity if the
   * server's agent hides files in a folder that cannot be read.
   */
  async bytesOf(server: ServerRecord): Promise<number> {
    const known = this.#looks.get(server.id);
    if (known !== undefined && performance.now() < known.freshUntil) return await known.bytes;
    const begun = performance.now();
    const sessionState = sessionStateOf(this.#context, server);
    const folders = [server.home, temporaryFolder(server.home), ...(sessionState === null ? [] : [sessionState])];
    const look = { freshUntil: Number.POSITIVE_INFINITY, bytes: bytesIn(folders) };
    this.#looks.set(server.id, look);
    try {
      return await look.bytes;
    } finally {
      const now = performance.now();
      look.freshUntil = now + Math.max(FRESH_MS, FRESH_TIMES * (now - begun));
    }
  }

  /** @throws FLEET_LIMIT_REACHED if the files of a server take more than `maxBytes`, the limit with which it started */
  async assertRoom(server: ServerRecord, maxBytes: number): Promise<void> {
    const bytes = await this.bytesOf(server);
    if (bytes <= maxBytes) return;
    throw new FleetError(
      "FLEET_LIMIT_REACHED",
      `The files of server ${server.id} take ${describeBytes(bytes)}, and sandbox.disk allows ${writeSize(maxBytes)}.`,
      {
        suggestions: [
          "copilotfleet delete SESSION # a session that the user no longer needs; its history is deleted, too",
          `copilotfleet describe ${server.id} # shows its home, where other files may be`,
          "Raise sandbox.disk, and restart the server.",
        ],
        limit: "sandbox.disk",
        retryable: false,
      },
    );
  }
}

/** A size for a message, such as "1.2gb". */
export function describeBytes(bytes: number): string {
  if (bytes === Number.POSITIVE_INFINITY) return "an unknown amount, because a folder cannot be read,";
  const [unit, factor] = bytes >= 1024 ** 3 ? ["gb", 1024 ** 3] : ["mb", 1024 ** 2];
  return `${(bytes / Number(factor)).toFixed(1)}${unit}`;
}

/** The size of everything in these folders, in bytes. Does not follow links, because the agent may have made them. */
async function bytesIn(folders: readonly string[]): Promise<number> {
  const until = performance.now() + LONGEST_LOOK_MS;
  /** The files with several hard links that were already counted, because each file counts once. */
  const linked = new Set<string>();
  const left = [...folders];
  let bytes = 0;
  for (let folder = left.pop(); folder !== undefined && performance.now() < until; folder = left.pop()) {
    const names = await namesIn(folder);
    if (names === null) return Number.POSITIVE_INFINITY;
    for (let at = 0; at < names.length && performance.now() < until; at += AT_ONCE) {
      const paths = names.slice(at, at + AT_ONCE).map((name) => join(folder, name));
      const seen = await Promise.all(paths.map(async (path) => ({ path, stats: await statsOf(path) })));
      for (const { path, stats } of seen) {
        if (stats === null) continue;
        if (stats.isDirectory()) left.push(path);
        const id = `${stats.dev}:${stats.ino}`;
        if (stats.nlink > 1 && !stats.isDirectory()) {
          if (linked.has(id)) continue;
          linked.add(id);
        }
        bytes += Math.max(ENTRY_BYTES, stats.blocks * 512);
      }
    }
  }
  return bytes;
}

/**
 * Null for a folder that this process may not read. Empty after any other system error, for example if the folder is
 * gone.
 */
async function namesIn(folder: string): Promise<string[] | null> {
  return await readdir(folder).catch((error: unknown) => {
    const code = systemCode(error);
    if (code === undefined) throw error;
    return code === "EACCES" ? null : [];
  });
}

async function statsOf(path: string) {
  return await lstat(path).catch((error: unknown) => {
    if (systemCode(error) === undefined) throw error;
    return null;
  });
}
