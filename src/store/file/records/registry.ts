import { readdirSync } from "node:fs";
import { join } from "node:path";
import { quote, type Suggestion } from "../../../base/errors.js";
import type { Registry } from "../../../base/server.js";
import { corruptError } from "../../failures.js";
import { EMPTY_REGISTRY, parseRegistry, type RegistryStore } from "../../ports.js";
import type { UpdateQueue } from "../../update-queue.js";
import {
  type Base,
  damageWarning,
  describeDamage,
  documentUpdates,
  type Head,
  HeadMemory,
  isQuarantined,
  listFolder,
  type Published,
  publish,
  publishedPath,
  readHead,
  readPublished,
  sweepFolder,
} from "../commit.js";
import { makeFolder } from "../durable.js";
import { enterPolitely, reason, type StoreContext, writing } from "../failures.js";

const KEEP = 16;
const NO_HEAD: Head = { rev: 0, data: undefined, top: 0, damaged: [], others: [] };

/** The registry of this machine's fleet: one document, with a copy that people and other programs can read. */
export class RegistryRecord implements RegistryStore {
  readonly folder: string;
  readonly #context: StoreContext;
  readonly #updates: UpdateQueue<Registry>;
  readonly #memory = new HeadMemory<Base>();
  #swept = false;

  constructor(context: StoreContext) {
    this.#context = context;
    this.folder = join(context.root, "registry");
    this.#updates = documentUpdates(context, {
      folder: this.folder,
      keep: KEEP,
      durable: true,
      parse: parseRegistry,
      prepare: () => this.#prepare(),
      load: () => this.#load(),
      enter: () => this.#enter(),
      committed: (rev, data) => this.#publish(rev, data),
    });
  }

  async read(): Promise<Registry> {
    this.#context.checkRoot();
    return parseRegistry(this.#memory.read(this.folder, () => this.#load()).data);
  }

  async update<T>(change: (draft: Registry) => T): Promise<T> {
    const result = await this.#context.writes.track(this.#updates.update(change));
    // Also sweep the state folder, but only once. Each commit sweeps only the folder of its document.
    if (!this.#swept) {
      this.#swept = true;
      await sweepFolder(this.#context.root);
    }
    return result;
  }

  async rebuild(registry: Registry): Promise<void> {
    const { root } = this.#context;
    const rev = (listFolder(this.folder)?.revisions[0] ?? 0) + 1;
    // `#load` prefers this copy to the damaged revisions, and the next update writes it as a revision.
    const copy = { rev, data: JSON.stringify(registry) };
    await writing(root, async () => await publish(root, copy, () => undefined));
  }

  #prepare(): void {
    this.#context.ensureRoot();
    makeFolder(this.folder);
  }

  async #enter(): Promise<() => Promise<void>> {
    try {
      // The lock is a file beside the folder, so the folder must exist.
      this.#prepare();
    } catch {
      // The commit calls `#prepare` again and reports the error to the callers.
      return async () => undefined;
    }
    return enterPolitely(this.folder);
  }

  async #publish(rev: number, data: string): Promise<void> {
    const { root, warn } = this.#context;
    try {
      await publish(root, { rev, data }, (written) => this.#newerThan(written));
    } catch (error) {
      warn(`${quote(publishedPath(root))} is not up to date (the state itself is): ${reason(error)}.`);
    }
  }

  #newerThan(rev: number): { rev: number; data: string } | undefined {
    const top = listFolder(this.folder)?.revisions[0] ?? 0;
    const head = top > rev ? readHead(this.folder, KEEP) : undefined;
    return head?.data !== undefined && head.rev > rev ? { rev: head.rev, data: head.data } : undefined;
  }

  /**
   * The newest registry. It is empty only if there has never been a registry.
   *
   * @throws FleetError `FLEET_STATE_CORRUPT` when there was a registry, and neither a revision nor the copy is readable.
   */
  #load(): Base {
    const { root, warn } = this.#context;
    // Read the copy before the revisions, because each commit writes the copy last. In the other order, if the first
    // commit happened between the two reads, we would find a copy without revisions, as if the revisions were lost.
    const published = readPublished(publishedPath(root));
    const head = readHead(this.folder, KEEP) ?? NO_HEAD;
    const damaged = head.damaged.map(({ rev }) => rev);
    const ownTop = { top: head.top, damaged };

    const isCopyDamaged = published.kind === "damaged";
    if (head.data !== undefined && isCopyDamaged) {
      const copy = `${quote(publishedPath(root))} is damaged (${published.reason})`;
      warn(damageWarning(copy, "It is only a copy; nothing is lost."));
    }
    if (head.data !== undefined && damaged.length === 0) {
      return { ...ownTop, rev: head.rev, next: head.top + 1, data: head.data, mend: isCopyDamaged };
    }
    const damage = describeDamage("the registry", this.folder, head.damaged);
    // The copy may be newer than the newest undamaged revision: it may be the copy of a revision that is damaged now.
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
    this.#refuseIfLost(head, published);
    return { ...ownTop, rev: 0, next: 1, data: EMPTY_REGISTRY, mend: false };
  }

  /**
   * Refuses to start with an empty registry if there are traces of an earlier registry. A folder without revisions is not
   * such a trace, because an interrupted first commit also leaves an empty folder.
   */
  #refuseIfLost(head: Head, published: Published): void {
    const { root } = this.#context;
    const mend: readonly Suggestion[] = [
      "copilotfleet doctor --fix # rebuilds the registry from the folders and processes of the servers",
      `Or put a backup in place as ${publishedPath(root)}.`,
    ];
    if (published.kind === "damaged") throw corruptError(publishedPath(root), published.reason, mend);
    if (head.top > 0) {
      throw corruptError(this.folder, describeDamage("the registry", this.folder, head.damaged), mend);
    }
    if (head.others.some(isQuarantined) || namesIn(root).some(isQuarantined)) {
      throw corruptError(root, "only damaged copies are left", mend);
    }
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
    // The folder does not exist. If it were only unreadable, an earlier read would have failed.
    return [];
  }
}
