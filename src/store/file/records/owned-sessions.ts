import { readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { systemCode } from "../../../errors.js";
import { userDigest } from "../../../model/ids.js";
import { makeFolder } from "../commit/durable.js";
import type { StoreContext } from "../context.js";
import { mediumError, readIfThere } from "../failures.js";

/**
 * After a count has compared the files with the records, later counts trust the files for this many milliseconds.
 * Otherwise, each request of a user at the limit would read all of that user's records.
 */
const CHECKED_MS = 5_000;

/**
 * One folder for each user, with an empty file for each session. So the cost of counting a user's sessions does not depend
 * on the sessions of other users. A crash may leave a file without a record, so {@link count} also reads records.
 */
export class OwnedSessions {
  readonly #root: string;
  readonly #warn: StoreContext["warn"];
  /** When the files of a user were last compared with the records, by `performance.now()`. */
  readonly #checked = new Map<string, number>();

  constructor({ root, warn }: StoreContext) {
    this.#warn = warn;
    this.#root = join(root, "owned");
  }

  /** Adds the file of a session. A failure is only a warning, because the file matters only for the limit on sessions. */
  add(owner: string, id: string): void {
    const folder = this.#folderOf(owner);
    const write = () => writeFileSync(join(folder, id), "", { flag: "a", mode: 0o600 });
    this.#tolerant(folder, () => {
      try {
        write();
      } catch (error) {
        if (systemCode(error) !== "ENOENT") throw error;
        makeFolder(this.#root);
        makeFolder(folder);
        write();
      }
    });
  }

  /** Removes the file of a session. Warns like {@link add}. */
  remove(owner: string, id: string): void {
    const folder = this.#folderOf(owner);
    this.#tolerant(folder, () => rmSync(join(folder, id), { force: true }));
  }

  #tolerant(folder: string, work: () => void): void {
    try {
      work();
    } catch (error) {
      const { message } = mediumError("write", folder, error) as Error;
      this.#warn(`${message} The number of sessions that a user has may be wrong until it can be written.`);
    }
  }

  /** The sessions that have a file. After a crash, this may include the id of a session that has no record. */
  ids(owner: string): string[] {
    const folder = this.#folderOf(owner);
    return readIfThere(folder, () => readdirSync(folder)) ?? [];
  }

  /**
   * Counts the sessions of a user by their files.
   *
   * @param limit if the user has at least this many files, compares them with the records (once per `CHECKED_MS`)
   * @param isOwned whether the record of a session names the user as its owner
   */
  count(owner: string, limit: number, isOwned: (id: string) => boolean): number {
    const ids = this.ids(owner);
    const now = performance.now();
    const checkedAt = this.#checked.get(owner);
    if (ids.length < limit || (checkedAt !== undefined && now - checkedAt < CHECKED_MS)) return ids.length;
    const owned = ids.filter(isOwned);
    for (const id of ids) if (!owned.includes(id)) this.remove(owner, id);
    this.#checked.set(owner, now);
    return owned.length;
  }

  #folderOf(owner: string): string {
    return join(this.#root, userDigest(owner));
  }
}
