import { readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { FleetError, quote, systemCode } from "../../../base/errors.js";
import { userDigest } from "../../../base/ids.js";
import type { SessionRecord } from "../../../base/session.js";
import type { OnUnreadable, SessionStore } from "../../ports.js";
import { makeFolder } from "../durable.js";
import { mediumError, readIfThere, type StoreContext } from "../failures.js";
import type { LeaseRecords } from "./lease-records.js";
import { RecordFolder } from "./record-folder.js";

const UNREADABLE = Symbol();

/** The records of sessions, and an index of them by owner. `delete` also deletes the session's lease. */
export class SessionRecords implements SessionStore {
  readonly #context: StoreContext;
  readonly #leases: LeaseRecords;
  readonly records: RecordFolder<SessionRecord>;
  readonly #owned: OwnedSessions;

  constructor(context: StoreContext, leases: LeaseRecords) {
    this.#context = context;
    this.#leases = leases;
    this.records = new RecordFolder(context, {
      name: "sessions",
      title: (id) => `the record of session ${quote(id)}`,
      durable: true,
      ifDamaged:
        "The fleet uses the previous revision and lost the last change, such as the time of last use. The conversation is kept elsewhere.",
      belongsTo: (record, id) => record.id === id,
    });
    this.#owned = new OwnedSessions(context);
  }

  async read(id: string): Promise<SessionRecord | null> {
    this.#context.checkRoot();
    return this.records.read(id);
  }

  async create(record: SessionRecord): Promise<void> {
    if (!(await this.records.create(record.id, record))) {
      throw new FleetError("FLEET_SESSION_EXISTS", `There is already a session ${quote(record.id)}.`);
    }
    this.#owned.add(record.owner, record.id);
  }

  async update<T>(id: string, change: (draft: SessionRecord) => T): Promise<T> {
    const updated = await this.records.update(id, (draft) => {
      const result = change(draft);
      if (draft.id !== id) throw new FleetError("FLEET_INTERNAL", `The id of session ${quote(id)} cannot change.`);
      return { result, owner: draft.owner };
    });
    if (updated === undefined) throw new FleetError("FLEET_SESSION_NOT_FOUND", `There is no session ${quote(id)}.`);
    // Add the file in `owned/`, because a process that was killed right after it wrote the record did not add one.
    this.#owned.add(updated.owner, id);
    return updated.result;
  }

  async delete(id: string): Promise<boolean> {
    this.#context.checkRoot();
    // Delete even an unreadable record, because nothing else would. Its owner is not known.
    const record = this.records.readOr(id, UNREADABLE);
    const isDeleted = record !== null && (await this.records.delete(id));
    if (isDeleted && record !== UNREADABLE) this.#owned.remove(record.owner, id);
    // Delete the lease last, so that its holder keeps it until the record is gone.
    await this.#leases.delete(id);
    return isDeleted;
  }

  async deleteMany(ids: readonly string[], agree: (record: SessionRecord) => boolean): Promise<string[]> {
    this.#context.checkRoot();
    const deleted: string[] = [];
    await this.records.deleteMany(ids, agree, ({ owner, id }) => {
      this.#owned.remove(owner, id);
      deleted.push(id);
    });
    return deleted;
  }

  async list(onUnreadable?: OnUnreadable): Promise<SessionRecord[]> {
    this.#context.checkRoot();
    return await this.records.list(onUnreadable);
  }

  async ids(owner: string | null): Promise<string[]> {
    this.#context.checkRoot();
    return owner === null ? this.records.ids() : this.#owned.ids(owner);
  }

  async count(owner: string | null, limit: number): Promise<number> {
    this.#context.checkRoot();
    if (owner === null) return this.records.ids().length;
    return this.#owned.count(owner, limit, (id) => {
      const record = this.records.readOr(id, UNREADABLE);
      // The owner of an unreadable record is not known, so count it.
      return record === UNREADABLE || record?.owner === owner;
    });
  }
}

/**
 * After a count has compared the files with the records, later counts trust the files for this many milliseconds.
 * Otherwise, each request of a user at the limit would read all of that user's records.
 */
const CHECKED_MS = 5_000;

/**
 * One folder for each user, with an empty file for each session. So the cost of counting a user's sessions does not depend
 * on the sessions of other users. A crash may leave a file without a record, so {@link count} also reads records.
 */
class OwnedSessions {
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
