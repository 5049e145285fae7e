import { lstatSync, readdirSync, type Stats } from "node:fs";
import { join } from "node:path";
import { quote } from "../../../errors.js";
import type { Registry } from "../../../model/registry.js";
import { EMPTY_REGISTRY, parseRegistry } from "../../../model/registry.js";
import type { RegistryStore } from "../../ports.js";
import { damageWarning, describeDamage } from "../commit/damage.js";
import { type Base, Document, type DocumentSpec } from "../commit/document.js";
import { makeFolder } from "../commit/durable.js";
import { type Head, listFolder, readHead } from "../commit/head.js";
import { type Published, publish, publishedPath, readPublished } from "../commit/published.js";
import { isQuarantined } from "../commit/quarantine.js";
import { revisionName } from "../commit/revision.js";
import { sweepFolder } from "../commit/sweep.js";
import type { StoreContext } from "../context.js";
import { corruptError, mediumError, reason } from "../failures.js";
import { enterPolitely } from "../polite-lock.js";

const KEEP = 16;

export function registryFolder(root: string): string {
  return join(root, "registry");
}

export function registrySpec({ root, deadlineMs, onStep, warn, ensureRoot }: StoreContext): DocumentSpec<Registry> {
  const folder = registryFolder(root);
  const prepare = () => {
    ensureRoot();
    makeFolder(folder);
  };
  return {
    folder,
    keep: KEEP,
    deadlineMs,
    onStep,
    parse: parseRegistry,
    prepare,
    load: () => loadRegistry(root, warn),
    enter: async () => {
      try {
        // The lock is a file beside this folder. Without the folder, the very first writers would have no lock.
        prepare();
      } catch {
        // Ignore the error. The attempt that follows calls `prepare` again and reports the error to its callers.
        return async () => undefined;
      }
      return enterPolitely(folder);
    },
    committed: async (rev, data) => {
      try {
        await publish(root, { rev, data }, (written) => newerRevision(folder, written));
      } catch (error) {
        warn(`${quote(publishedPath(root))} is not up to date (the state itself is): ${reason(error)}.`);
      }
    },
  };
}

/**
 * The newest registry. It is empty only if there has never been one.
 *
 * @throws FleetError `FLEET_STATE_CORRUPT` when there was one and neither a revision nor the copy is readable.
 */
export function loadRegistry(root: string, warn: (message: string) => void): Base {
  // Read the copy first. If the first commit happens between the two reads, the result is the same as if it had
  // happened before both.
  const published = readPublished(root);
  const head = readHead(registryFolder(root), KEEP) ?? NO_HEAD;
  const damaged = head.damaged.map(({ rev }) => rev);
  const ownTop = { top: head.top, damaged };

  const isCopyDamaged = published.kind === "damaged";
  if (head.data !== undefined && isCopyDamaged) warnOfCopy(root, published.reason, warn);
  if (head.data !== undefined && damaged.length === 0) {
    return { ...ownTop, rev: head.rev, next: head.top + 1, data: head.data, mend: isCopyDamaged };
  }
  const damage = describeDamage("the registry", registryFolder(root), head.damaged);
  // The copy may be newer than the newest undamaged revision, because it may come from the revision that is damaged
  // now.
  if (published.kind === "good" && published.rev > head.rev) {
    const recovered = `The fleet recovered revision ${published.rev} from its copy ${quote(publishedPath(root))}`;
    warn(damageWarning(damage, `${recovered}${lost(head.top - published.rev)}.`));
    const next = Math.max(head.top, published.rev) + 1;
    const rev = damaged.includes(published.rev) ? published.rev : 0;
    return { ...ownTop, rev, next, data: published.data, mend: true };
  }
  if (head.data !== undefined) {
    warn(damageWarning(damage, `The fleet went back to revision ${head.rev}${lost(head.top - head.rev)}.`));
    return { ...ownTop, rev: head.rev, next: head.top + 1, data: head.data, mend: true };
  }
  refuseIfLost(root, head, published);
  return { ...ownTop, rev: 0, next: 1, data: EMPTY_REGISTRY, mend: false };
}

/** The registry of this machine's fleet: one document, with a copy that people and other programs can read. */
export class RegistryRecord implements RegistryStore {
  readonly #context: StoreContext;
  readonly #document: Document<Registry>;
  readonly #reader: RegistryReader;
  #swept = false;

  constructor(context: StoreContext) {
    this.#context = context;
    this.#document = new Document(registrySpec(context));
    this.#reader = new RegistryReader(context.root, context.warn);
  }

  async read(): Promise<Registry> {
    this.#context.checkRoot();
    return this.#reader.read();
  }

  async update<T>(change: (draft: Registry) => T): Promise<T> {
    const result = await this.#document.update(change);
    // Sweep the state folder once. The commits in the folders of records and of the registry sweep those folders.
    if (!this.#swept) {
      this.#swept = true;
      await sweepFolder(this.#context.root);
    }
    return result;
  }

  async settled(): Promise<void> {
    await this.#document.pending;
  }
}

/**
 * Reads the registry cheaply, because it is read often, for example in each turn. As long as the newest revision is the
 * same file, the reader only checks that. This is sufficient because a revision never changes, and its number is not
 * reused while it is the highest.
 */
export class RegistryReader {
  readonly #root: string;
  readonly #warn: (message: string) => void;
  #last: { file: string; data: string } | undefined;

  constructor(root: string, warn: (message: string) => void) {
    this.#root = root;
    this.#warn = warn;
  }

  /** @returns a private copy of the registry. */
  read(): Registry {
    const folder = registryFolder(this.#root);
    const [top] = listFolder(folder)?.revisions ?? [];
    const stat = top === undefined ? undefined : statIfThere(join(folder, revisionName(top)));
    const file = stat && `${top} ${stat.ino} ${stat.size} ${stat.mtimeMs}`;
    if (file !== undefined && file === this.#last?.file) return parseRegistry(this.#last.data);
    const { rev, damaged, data } = loadRegistry(this.#root, this.#warn);
    // Cache nothing if a revision is damaged, because each read must report the damage. Cache nothing either if a newer
    // revision appeared after the listing.
    this.#last = file === undefined || rev !== top || damaged.length > 0 ? undefined : { file, data };
    return parseRegistry(data);
  }
}

function statIfThere(path: string): Stats | undefined {
  try {
    return lstatSync(path, { throwIfNoEntry: false });
  } catch (error) {
    throw mediumError("read", path, error);
  }
}

const NO_HEAD: Head = { rev: 0, data: undefined, top: 0, damaged: [], others: [] };

/**
 * A registry exists once the file of revision 1 has been linked. An interrupted first commit leaves a folder without
 * revisions, which counts as empty. Any other trace means that state was lost.
 */
function refuseIfLost(root: string, head: Head, published: Published): void {
  const folder = registryFolder(root);
  const mend = `Put a backup in place: ${publishedPath(root)}`;
  if (published.kind === "damaged") throw corruptError(publishedPath(root), published.reason, mend);
  if (head.top > 0) throw corruptError(folder, describeDamage("the registry", folder, head.damaged), mend);
  if (head.others.some(isQuarantined) || namesIn(root).some(isQuarantined)) {
    throw corruptError(root, "only damaged copies are left", mend);
  }
}

/** The rest of a warning: how many changes were lost and the possible consequence. */
function lost(changes: number): string {
  if (changes <= 0) return "; nothing is lost";
  const [these, they] = changes === 1 ? ["change", "it"] : [`${changes} changes`, "they"];
  return ` and lost the last ${these}: a server that ${they} started may run without a record`;
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    // A folder that does not exist has no left-overs. If the folder could not be listed, the reads before this have
    // failed.
    return [];
  }
}

function warnOfCopy(root: string, why: string, warn: (message: string) => void): void {
  warn(damageWarning(`${quote(publishedPath(root))} is damaged (${why})`, "It is only a copy; nothing is lost."));
}

function newerRevision(folder: string, rev: number): { rev: number; data: string } | undefined {
  const top = listFolder(folder)?.revisions[0] ?? 0;
  const head = top > rev ? readHead(folder, KEEP) : undefined;
  return head?.data !== undefined && head.rev > rev ? { rev: head.rev, data: head.data } : undefined;
}
