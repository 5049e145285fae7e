import { lstatSync } from "node:fs";
import { join } from "node:path";
import { readIfThere } from "../failures.js";
import type { Head } from "./head.js";
import { revisionName } from "./revision.js";

/**
 * How long ago a folder must have changed before it is remembered, in milliseconds. The kernel's clock for files may stand
 * still for 10 ms, and two changes within that time give a folder the same time.
 */
const SETTLED_MS = 100;
const MOST = 1_000;

/** The parts of a document's state that decide whether it may be kept. */
type Read = Pick<Head, "rev" | "top"> & { damaged: readonly unknown[] };

interface Known<T> {
  /** The states of the folder and of the file of its newest revision. */
  folder: string;
  file: string;
  path: string;
  head: T;
}

/**
 * Keeps the newest revisions of documents in memory, because every turn reads several. Each commit and each deletion changes
 * the document's folder, so a look at the folder proves that the newest revision is still the newest. A look at the file
 * finds out that somebody damaged it.
 */
export class HeadMemory<T extends Read> {
  readonly #known = new Map<string, Known<T>>();

  /** Returns what `load` returned for this folder, and calls it only if the document may have changed. */
  read<U extends T | null>(folder: string, load: () => U): T | U {
    const state = stateOf(folder);
    const known = this.#known.get(folder);
    if (known !== undefined && known.folder === state && known.file === stateOf(known.path)) return known.head;
    this.#known.delete(folder);
    const head = load();
    // Each read must report the damage. A change after `state` was read gives the folder another state.
    if (state === null || head === null || head.damaged.length > 0 || head.rev !== head.top) return head;
    const path = join(folder, revisionName(head.rev));
    const file = stateOf(path);
    const [oldest] = this.#known.keys();
    if (this.#known.size >= MOST && oldest !== undefined) this.#known.delete(oldest);
    if (file !== null) this.#known.set(folder, { folder: state, file, path, head });
    return head;
  }
}

/** Null if there is nothing, or if it changed so recently that another change could go unnoticed. */
function stateOf(path: string): string | null {
  const stats = readIfThere(path, () => lstatSync(path, { throwIfNoEntry: false }));
  if (stats === undefined || Date.now() - stats.ctimeMs < SETTLED_MS) return null;
  return `${stats.ino} ${stats.ctimeMs} ${stats.size}`;
}
