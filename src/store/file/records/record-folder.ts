import { existsSync, mkdirSync, readdirSync, renameSync } from "node:fs";
import { rename } from "node:fs/promises";
import { join } from "node:path";
import { setImmediate as yieldToOthers } from "node:timers/promises";
import { shellQuote } from "../../../config/values/text.js";
import { isFleetError, systemCode } from "../../../errors.js";
import { assertSessionId, isSessionId } from "../../../model/ids.js";
import { corruptError, isUnreadable } from "../../failures.js";
import type { OnUnreadable } from "../../ports.js";
import { type UpdateQueue, UpdateQueues } from "../../update-queue.js";
import { createDocument, discard, raiseTombstone } from "../commit/create-delete.js";
import { damageWarning, describeDamage } from "../commit/damage.js";
import { type Base, documentUpdates } from "../commit/document.js";
import { scratchName, syncFolder } from "../commit/durable.js";
import { readHead, TOMBSTONE } from "../commit/head.js";
import { HeadMemory } from "../commit/head-memory.js";
import type { StoreContext } from "../context.js";
import { failsWith, readIfThere, writing } from "../failures.js";

const KEEP = 2;
/** Reads are synchronous. After this many records, a list or a deletion lets other work of the process run. */
const RECORDS_AT_ONCE = 50;

/** The properties that differ between kinds of records. */
export interface RecordSpec<T> {
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
