import { existsSync, lstatSync } from "node:fs";
import { join } from "node:path";
import { readIfThere } from "../failures.js";
import type { Head } from "./head.js";
import { revisionName } from "./revision.js";

/**
 * A file or folder is remembered only if its last change is at least this many milliseconds ago. The kernel's clock for
 * files may advance only every 10 ms, so two changes in quick succession may get the same time. Some file systems, such
 * as ext3, record only whole seconds. `SETTLED_SECONDS_MS` is for these.
 */
const SETTLED_MS = 100;
const SETTLED_SECONDS_MS = 2_100;
const MOST = 1_000;

/** The parts of a document's state that decide whether it may be kept in memory. */
type Read = Pick<Head, "rev" | "top"> & { damaged: readonly unknown[] };

interface Known<T> {
  /** The state of the document's folder: inode, change time and size, from `stateOf`. */
  folder: string;
  /** The state of the newest revision's file, in the same form. */
  file: string;
  path: string;
  /** The path of the revision that the next commit or deletion creates. */
  next: string;
  head: T;
}

/**
 * Keeps the newest revisions of documents in memory, because every turn reads several. A remembered revision is still the
 * newest if the document's folder has not changed and does not contain the next revision. The check for the next revision
 * finds commits even if the folder's time is still the same. A check of the revision's file detects damage to it.
 */
export class HeadMemory<T extends Read> {
  readonly #stateOf: typeof stateOf;
  readonly #known = new Map<string, Known<T>>();

  /** @param look reads the state of a file or folder; tests replace it */
  constructor(look: typeof stateOf = stateOf) {
    this.#stateOf = look;
  }

  /** Returns what `load` returned for this folder, and calls it only if the document may have changed. */
  read<U extends T | null>(folder: string, load: () => U): T | U {
    const state = this.#stateOf(folder);
    const known = this.#known.get(folder);
    if (known?.folder === state && known.file === this.#stateOf(known.path) && !existsSync(known.next))
      return known.head;
    this.#known.delete(folder);
    const head = load();
    // Do not remember a damaged document, because each read must report the damage. If the folder changes after `state`
    // was read, its state differs at the next read, and the memory is not used.
    if (state === null || head === null || head.damaged.length > 0 || head.rev !== head.top) return head;
    const path = join(folder, revisionName(head.rev));
    const file = this.#stateOf(path);
    if (file === null) return head;
    const [oldest] = this.#known.keys();
    if (this.#known.size >= MOST && oldest !== undefined) this.#known.delete(oldest);
    this.#known.set(folder, { folder: state, file, path, next: join(folder, revisionName(head.rev + 1)), head });
    return head;
  }
}

/**
 * The state of a file or folder. Null if it does not exist, or if it changed so recently that another change could go
 * unnoticed.
 */
function stateOf(path: string): string | null {
  const stats = readIfThere(path, () => lstatSync(path, { throwIfNoEntry: false }));
  if (stats === undefined) return null;
  const settledMs = stats.ctimeMs % 1_000 === 0 ? SETTLED_SECONDS_MS : SETTLED_MS;
  if (Date.now() - stats.ctimeMs < settledMs) return null;
  return `${stats.ino} ${stats.ctimeMs} ${stats.size}`;
}
