import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, statSync } from "node:fs";
import { link, rename, unlink } from "node:fs/promises";
import { join } from "node:path";
import { setImmediate as yieldToOthers } from "node:timers/promises";
import { isFleetError, type Suggestion, systemCode } from "../../../base/errors.js";
import { assertSessionId, isSessionId } from "../../../base/ids.js";
import { shellQuote } from "../../../base/values/text.js";
import { corruptError, isUnreadable, newerError } from "../../failures.js";
import type { OnUnreadable } from "../../ports.js";
import { type UpdateQueue, UpdateQueues } from "../../update-queue.js";
import {
  type Base,
  createDocument,
  damageWarning,
  decodeRevision,
  describeDamage,
  discard,
  documentUpdates,
  encodeRevision,
  HeadMemory,
  raiseTombstone,
  readHead,
  TOMBSTONE,
} from "../commit.js";
import { closeQuietly, makeFolder, scratchName, syncFolder, unlinkQuietly, writeNewFile } from "../durable.js";
import { failsWith, readIfThere, type StoreContext, writing } from "../failures.js";

const KEEP = 2;
/** Reads are synchronous. After this many records, a list or a deletion lets other work of the process run. */
const RECORDS_AT_ONCE = 50;

/** The properties that differ between kinds of records. */
interface RecordSpec<T> {
  name: "sessions" | "leases" | "limits";
  /** The words for a record in warnings, such as `the lease on "a"`. */
  title: (id: string) => string;
  /** Whether a change must survive a loss of power. Otherwise the record may return to an older state after the loss. */
  durable: boolean;
  /** The consequence when the newest revision is damaged, as a sentence for warnings. */
  ifDamaged: string;
  /**
   * Whether a record belongs to the id. On a file system that ignores case, two ids may have the same folder. Without this
   * method, they share a record.
   */
  belongsTo?: (record: T, id: string) => boolean;
}

/**
 * One document for each record, in its own folder. So a read or a write costs the same, however many records there are.
 *
 * The scratch folders of unfinished creations and deletions are in the state folder, not here. If they
 * were here, a session's id could look like the name of a scratch folder, and a sweep would have to list all records.
 */
export class RecordFolder<T extends object> {
  readonly #path: string;
  readonly #context: StoreContext;
  readonly #spec: RecordSpec<T>;
  readonly #memory = new HeadMemory<Base>();
  readonly #updates = new UpdateQueues<T>((id) => this.#updatesOf(id));

  constructor(context: StoreContext, spec: RecordSpec<T>) {
    this.#context = context;
    this.#spec = spec;
    this.#path = join(context.root, spec.name);
  }

  read(id: string): T | null {
    const head = this.#memory.read(this.#folderOf(id), () => this.#load(id));
    return head && (JSON.parse(head.data) as T);
  }

  /** Like {@link read}, but returns `instead` for an unreadable record. */
  readOr<U>(id: string, instead: U): T | U | null {
    try {
      return this.read(id);
    } catch (error) {
      if (isFleetError(error, "FLEET_STATE_CORRUPT")) return instead;
      throw error;
    }
  }

  /** Whether the record exists, even if it is unreadable. */
  has(id: string): boolean {
    return existsSync(this.#folderOf(id));
  }

  /** Creates a record. Resolves with false if it exists. */
  async create(id: string, record: T): Promise<boolean> {
    const make = () => createDocument(this.#context, this.#folderOf(id), JSON.stringify(record), this.#spec);
    return (await make()) || ((await this.#makeRoom(id)) && (await make()));
  }

  /**
   * Removes the folder of a deleted record, which a process leaves if it dies right after the deletion.
   *
   * @returns whether there was such a folder
   */
  async #makeRoom(id: string): Promise<boolean> {
    if (!isDeleted(this.#folderOf(id))) return false;
    const trash = this.#newTrash();
    mkdirSync(trash, { mode: 0o700 });
    this.#bury(id, trash);
    await discard(trash);
    return true;
  }

  /** As `RegistryStore.update`, for a record. Resolves with undefined if the record does not exist. */
  async update<R>(id: string, change: (draft: T) => R): Promise<R | undefined> {
    try {
      return await this.#context.writes.track(this.#updates.update(id, change));
    } catch (error) {
      if (error instanceof Missing) return undefined;
      throw error;
    }
  }

  /** Deletes a record, even if it is unreadable. Resolves with true if the record existed. */
  async delete(id: string): Promise<boolean> {
    const folder = this.#folderOf(id);
    const trash = this.#newTrash();
    return await writing(this.#path, async () => {
      if (await failsWith(["ENOENT"], () => rename(folder, trash))) return false;
      if (this.#spec.durable) await syncFolder(this.#path);
      await discard(trash);
      return true;
    });
  }

  /** Deletes the records for which `agree` returns true, each atomically. Syncs to disk once for all of them. */
  async deleteMany(
    ids: readonly string[],
    agree: (record: T) => boolean,
    onDeleted: (record: T, id: string) => void,
  ): Promise<void> {
    if (ids.length === 0 || !existsSync(this.#path)) return;
    const trash = this.#newTrash();
    let deleted = 0;
    await writing(this.#path, async () => {
      mkdirSync(trash, { mode: 0o700 });
      try {
        for (const [index, id] of ids.entries()) {
          if (index % RECORDS_AT_ONCE === RECORDS_AT_ONCE - 1) await yieldToOthers();
          const record = await this.#deleteIf(id, agree);
          if (record === null) continue;
          deleted += 1;
          onDeleted(record, id);
          this.#bury(id, trash);
        }
        if (deleted > 0) await syncFolder(this.#path);
      } finally {
        await discard(trash);
      }
    });
  }

  /**
   * Deletes a record with a tombstone if `agree` returns true. The tombstone completes the deletion. The caller then
   * moves the folder away, only to make room for a new record with this id.
   *
   * @returns the deleted record; null if it does not exist, or if `agree` returned false
   */
  async #deleteIf(id: string, agree: (record: T) => boolean): Promise<T | null> {
    for (;;) {
      const base = this.#load(id);
      if (base === null || !agree(base.record)) return null;
      await this.#context.onStep?.("read");
      if (!raiseTombstone(this.#folderOf(id), base.next)) continue;
      await this.#context.onStep?.("linked");
      return base.record;
    }
  }

  /** Moves the folder of a deleted record away, unless a new record has its id by now. */
  #bury(id: string, trash: string): void {
    const folder = this.#folderOf(id);
    const buried = join(trash, id);
    try {
      renameSync(folder, buried);
      // If this process was suspended after the deletion, another process may have moved the old folder away and
      // created the record again. Then this is the folder of the new record, so put it back.
      if (!isDeleted(buried)) renameSync(buried, folder);
    } catch (error) {
      if (systemCode(error) !== "ENOENT") throw error; // another process moved it
    }
  }

  #newTrash(): string {
    return join(this.#context.root, scratchName("trash"));
  }

  /** As `SessionStore.list`. */
  async list(onUnreadable?: OnUnreadable): Promise<T[]> {
    const records: T[] = [];
    for (const [index, id] of this.ids().entries()) {
      if (index % RECORDS_AT_ONCE === RECORDS_AT_ONCE - 1) await yieldToOthers();
      try {
        const head = this.#load(id);
        if (head !== null) records.push(head.record);
      } catch (error) {
        if (onUnreadable === undefined || !isUnreadable(error)) throw error;
        onUnreadable(id, error);
      }
    }
    return records;
  }

  ids(): string[] {
    const entries = readIfThere(this.#path, () => readdirSync(this.#path, { withFileTypes: true })) ?? [];
    // Skip files, because a file manager may have left one here.
    return entries.filter((entry) => entry.isDirectory() && isSessionId(entry.name)).map(({ name }) => name);
  }

  folders(): string[] {
    return this.ids().map((id) => join(this.#path, id));
  }

  #folderOf(id: string): string {
    assertSessionId(id);
    return join(this.#path, id);
  }

  /** The newest state of a record; null if the record does not exist. */
  #load(id: string): (Base & { record: T }) | null {
    const folder = this.#folderOf(id);
    const head = readHead(folder, KEEP);
    if (head === undefined) return null;
    const { rev, top, data } = head;
    // A record's folder appears together with its first revision. So if no revision is readable, the record was lost.
    if (data === undefined) {
      const why = head.damaged.map(({ rev: each, reason }) => `revision ${each}: ${reason}`).join("; ");
      throw corruptError(folder, why || "its folder is empty", [
        `mv ${shellQuote(folder)} ${shellQuote(`${this.#path}-corrupt-${id}`)}`,
        `If you have a backup, restore ${folder} from it instead.`,
      ]);
    }
    if (data === TOMBSTONE) return null;
    const record = JSON.parse(data) as T;
    if (this.#spec.belongsTo?.(record, id) === false) return null;
    const damaged = head.damaged.map((each) => each.rev);
    const mend = damaged.length > 0;
    if (mend) {
      const damage = describeDamage(this.#spec.title(id), folder, head.damaged);
      this.#context.warn(damageWarning(damage, this.#spec.ifDamaged));
    }
    return { rev, top, next: top + 1, data, damaged, mend, record };
  }

  /** The updates of one record. A record has so few writers that retries cost less than a lock. */
  #updatesOf(id: string): UpdateQueue<T> {
    return documentUpdates(this.#context, {
      folder: this.#folderOf(id),
      keep: KEEP,
      durable: this.#spec.durable,
      parse: (data) => JSON.parse(data) as T,
      prepare: this.#context.checkRoot,
      load: () => {
        const base = this.#load(id);
        if (base === null) throw new Missing();
        return base;
      },
    });
  }
}

function isDeleted(folder: string): boolean {
  return readHead(folder, KEEP)?.data === TOMBSTONE;
}

/** The error for a record that does not exist. Only this file uses it. */
class Missing extends Error {}

/** Each of these records has only one revision, because it is replaced as a whole or never changes. */
const REVISION = 1;
const FILE = /^([a-z0-9]{1,64})\.json$/;

/** The records of one kind, each in one file. A record's name consists of 1 to 64 lower-case letters and digits. */
export class RecordFiles<T> {
  readonly #context: StoreContext;
  readonly #folder: string;
  readonly #remedy: ((name: string) => Suggestion) | null;

  /**
   * @param remedy returns the command that deletes a damaged record. If `remedy` is null, a damaged record counts as
   * missing.
   */
  constructor(context: StoreContext, folder: string, remedy: ((name: string) => Suggestion) | null) {
    this.#context = context;
    this.#folder = join(context.root, folder);
    this.#remedy = remedy;
  }

  read(name: string): T | null {
    this.#context.checkRoot();
    return this.#read(name);
  }

  #read(name: string): T | null {
    const path = this.#pathOf(name);
    // Check first whether the file exists, because this is faster than an exception. Usually it does not exist, for
    // example when the fleet checks whether a credential was revoked.
    const isThere = readIfThere(path, () => statSync(path, { throwIfNoEntry: false }) !== undefined);
    const bytes = isThere === true ? readIfThere(path, () => readFileSync(path)) : undefined;
    if (bytes === undefined) return null;
    const decoded = decodeRevision(bytes, REVISION);
    if (decoded.kind === "newer") throw newerError(path, decoded.schema);
    if (decoded.kind === "good") return JSON.parse(decoded.data) as T;
    if (this.#remedy !== null) throw corruptError(path, decoded.reason, this.#remedy(name));
    return null;
  }

  list(): T[] {
    return this.names().flatMap((name) => this.#read(name) ?? []);
  }

  /** The names of all records. Reads none of them. */
  names(): string[] {
    this.#context.checkRoot();
    const files = readIfThere(this.#folder, () => readdirSync(this.#folder));
    return (files ?? []).flatMap((file) => FILE.exec(file)?.[1] ?? []);
  }

  /** Creates a record. Resolves with false if it exists. */
  async create(name: string, record: T): Promise<boolean> {
    const exists = () => failsWith(["EEXIST"], () => this.#write(name, record, link));
    return !(await writing(this.#folder, exists));
  }

  /** If two processes replace a record at the same time, the later one wins. */
  async replace(name: string, record: T): Promise<void> {
    await writing(this.#folder, () => this.#write(name, record, rename));
  }

  /** Writes a record to a temporary file. @param publish gives the complete temporary file its final name */
  async #write(name: string, record: T, publish: (temp: string, path: string) => Promise<void>): Promise<void> {
    const { root, ensureRoot } = this.#context;
    ensureRoot();
    const temp = join(root, scratchName("tmp"));
    try {
      makeFolder(this.#folder);
      const bytes = encodeRevision(REVISION, scratchName("tmp"), JSON.stringify(record));
      closeQuietly(await writeNewFile(temp, bytes));
      await publish(temp, this.#pathOf(name));
      await syncFolder(this.#folder);
    } finally {
      unlinkQuietly(temp);
    }
  }

  /** Deletes a record. Resolves with true if it existed. */
  async delete(name: string): Promise<boolean> {
    this.#context.checkRoot();
    return await writing(this.#folder, async () => {
      if (await failsWith(["ENOENT"], () => unlink(this.#pathOf(name)))) return false;
      await syncFolder(this.#folder);
      return true;
    });
  }

  #pathOf(name: string): string {
    return join(this.#folder, `${name}.json`);
  }
}
