import { existsSync, mkdirSync, readdirSync, renameSync } from "node:fs";
import { rename } from "node:fs/promises";
import { join } from "node:path";
import { setImmediate as yieldToOthers } from "node:timers/promises";
import { FleetError, isFleetError, quote, systemCode } from "../../errors.js";
import { assertSessionId, isSessionId } from "../session-id.js";
import type { SessionRecord } from "../store.js";
import type { StoreContext } from "./context.js";
import { damageWarning, describeDamage } from "./damage.js";
import { type Base, Document } from "./document.js";
import { scratchName, syncFolder } from "./durable.js";
import { corruptError, mediumError } from "./failures.js";
import { readHead, TOMBSTONE } from "./head.js";
import { createDocument, discard } from "./new-document.js";
import { OwnedSessions } from "./owned-sessions.js";
import { raiseTombstone } from "./tombstone.js";

const KEEP = 2;
/** Reading is synchronous: after this many records everything else in the process gets its turn. */
const RECORDS_AT_ONCE = 100;

/**
 * One folder a record, so that touching one costs the same however many there are. `sessions/` holds nothing else: an id
 * may look like the store's own scratch names, and a sweep must not have to go through 10,000 names. What is half made or
 * half deleted is in the state folder itself.
 */
export class SessionRecords {
  readonly #context: StoreContext;
  readonly #folder: string;
  readonly #owned: OwnedSessions;
  /** Those with an update under way. */
  readonly #documents = new Map<string, Document<SessionRecord>>();

  constructor(context: StoreContext) {
    this.#context = context;
    this.#folder = join(context.root, "sessions");
    this.#owned = new OwnedSessions(context);
  }

  read(id: string): SessionRecord | null {
    const base = this.#load(id);
    return base && parseRecord(base.data);
  }

  async create(record: SessionRecord): Promise<void> {
    const make = () => createDocument(this.#context, this.#folderOf(record.id), JSON.stringify(record));
    if ((await make()) || ((await this.#makeRoom(record.id)) && (await make()))) {
      this.#owned.add(record.owner, record.id);
      return;
    }
    throw new FleetError("FLEET_SESSION_EXISTS", `There is already a session ${quote(record.id)}.`);
  }

  /** Clears away a record that was deleted by somebody who died before its folder was gone. */
  async #makeRoom(id: string): Promise<boolean> {
    if (readHead(this.#folderOf(id), KEEP)?.data !== TOMBSTONE) return false;
    const trash = join(this.#context.root, scratchName("trash"));
    mkdirSync(trash, { mode: 0o700 });
    this.#bury(id, trash);
    await discard(trash);
    return true;
  }

  async update<T>(id: string, change: (draft: SessionRecord) => T): Promise<T> {
    const document = this.#documents.get(id) ?? this.#open(id);
    this.#documents.set(id, document);
    let owner = "";
    try {
      const updated = await document.update((draft) => {
        const result = change(draft);
        if (draft.id !== id) throw new FleetError("FLEET_INTERNAL", `The id of session ${quote(id)} cannot change.`);
        owner = draft.owner;
        return result;
      });
      // One that an earlier version recorded has no file there.
      this.#owned.add(owner, id);
      return updated;
    } finally {
      if (document.pending === undefined) this.#documents.delete(id);
    }
  }

  async delete(id: string): Promise<boolean> {
    const target = this.#folderOf(id);
    const owner = this.#ownerOf(id);
    if (owner === null) return false;
    const trash = join(this.#context.root, scratchName("trash"));
    try {
      await rename(target, trash);
    } catch (error) {
      if (systemCode(error) === "ENOENT") return false;
      throw mediumError("write", target, error);
    }
    try {
      await syncFolder(this.#folder);
    } catch (error) {
      throw mediumError("write", this.#folder, error);
    }
    if (owner !== "") this.#owned.remove(owner, id);
    await discard(trash);
    return true;
  }

  /** As {@link Store.deleteSessions}. Forced to the disk once for all of them. */
  async deleteMany(ids: readonly string[], agree: (record: SessionRecord) => boolean): Promise<string[]> {
    if (ids.length === 0 || !existsSync(this.#folder)) return [];
    const trash = join(this.#context.root, scratchName("trash"));
    const deleted: string[] = [];
    try {
      mkdirSync(trash, { mode: 0o700 });
      for (const [index, id] of ids.entries()) {
        if (index % RECORDS_AT_ONCE === RECORDS_AT_ONCE - 1) await yieldToOthers();
        if (!(await this.#deleteIf(id, agree))) continue;
        deleted.push(id);
        this.#bury(id, trash);
      }
      if (deleted.length > 0) await syncFolder(this.#folder);
    } catch (error) {
      throw mediumError("write", this.#folder, error);
    } finally {
      await discard(trash);
    }
    return deleted;
  }

  /**
   * The tombstone is the deletion: whoever wants to change the record after it finds none, and whoever changed it before
   * is seen by `agree`. Moving the folder away afterwards only makes room.
   */
  async #deleteIf(id: string, agree: (record: SessionRecord) => boolean): Promise<boolean> {
    for (;;) {
      const base = this.#load(id);
      if (base === null || !agree(parseRecord(base.data))) return false;
      await this.#context.onStep?.("read");
      if (!raiseTombstone(this.#folderOf(id), base.next)) continue;
      await this.#context.onStep?.("linked");
      this.#owned.remove(parseRecord(base.data).owner, id);
      return true;
    }
  }

  /** Takes the folder of a deleted record out of the way, unless a new record has its id by now. */
  #bury(id: string, trash: string): void {
    const folder = this.#folderOf(id);
    const buried = join(trash, id);
    try {
      renameSync(folder, buried);
      // Only after a suspension since the tombstone: somebody else buried it, and created it anew.
      if (readHead(buried, KEEP)?.data !== TOMBSTONE) renameSync(buried, folder);
    } catch (error) {
      if (systemCode(error) !== "ENOENT") throw error; // buried by somebody else
    }
  }

  async list(): Promise<SessionRecord[]> {
    const records: SessionRecord[] = [];
    const ids = this.#ids();
    for (const [index, id] of ids.entries()) {
      if (index % RECORDS_AT_ONCE === RECORDS_AT_ONCE - 1) await yieldToOthers();
      const record = this.read(id);
      if (record !== null) records.push(record);
    }
    return records;
  }

  /** As {@link Store.countSessions}. */
  count(owner: string | null, limit: number): number {
    if (owner === null) return this.#ids().length;
    return this.#owned.count(owner, limit, (id) => {
      try {
        return this.read(id)?.owner === owner;
      } catch (error) {
        // Nobody knows whose it is. It counts until somebody deletes or repairs it.
        if (isFleetError(error, "FLEET_STATE_CORRUPT")) return true;
        throw error;
      }
    });
  }

  /** Whether there is a record, readable or not. */
  has(id: string): boolean {
    return existsSync(this.#folderOf(id));
  }

  /** The folders of all records. */
  folders(): string[] {
    return this.#ids().map((id) => join(this.#folder, id));
  }

  async settled(): Promise<void> {
    await Promise.all([...this.#documents.values()].map(({ pending }) => pending));
  }

  #folderOf(id: string): string {
    assertSessionId(id);
    return join(this.#folder, id);
  }

  #ids(): string[] {
    try {
      const entries = readdirSync(this.#folder, { withFileTypes: true });
      // A file manager may have left a file of its own.
      return entries.filter((entry) => entry.isDirectory() && isSessionId(entry.name)).map(({ name }) => name);
    } catch (error) {
      if (systemCode(error) === "ENOENT") return [];
      throw mediumError("read", this.#folder, error);
    }
  }

  #open(id: string): Document<SessionRecord> {
    const { deadlineMs, onStep, checkRoot } = this.#context;
    return new Document({
      folder: this.#folderOf(id),
      keep: KEEP,
      deadlineMs,
      onStep,
      parse: parseRecord,
      prepare: checkRoot,
      load: () => {
        const base = this.#load(id);
        if (base === null) throw new FleetError("FLEET_SESSION_NOT_FOUND", `There is no session ${quote(id)}.`);
        return base;
      },
      // Writers of one and the same record are few; the retries cost less than a lock would.
      enter: async () => async () => undefined,
      committed: async () => undefined,
    });
  }

  #load(id: string): Base | null {
    const folder = this.#folderOf(id);
    const head = readHead(folder, KEEP);
    if (head === undefined) return null;
    // A record's folder appears with a revision in it, so one without any was not interrupted: it lost something.
    if (head.data === undefined) {
      const why = head.damaged.map(({ rev, reason }) => `revision ${rev}: ${reason}`).join("; ");
      throw corruptError(folder, why || "its folder is empty", `mv ${folder} ${this.#folder}-corrupt-${id}`);
    }
    if (head.data === TOMBSTONE) return null;
    // Two ids that differ in case share a folder on some file systems.
    if (parseRecord(head.data).id !== id) return null;
    const damaged = head.damaged.map(({ rev }) => rev);
    if (damaged.length > 0) {
      const damage = describeDamage(`the record of session ${quote(id)}`, folder, head.damaged);
      const consequence =
        "The fleet uses the one before and lost the last change, such as the time of last use. The conversation is kept elsewhere.";
      this.#context.warn(damageWarning(damage, consequence));
    }
    const mend = damaged.length > 0;
    return { rev: head.rev, top: head.top, next: head.top + 1, data: head.data, damaged, mend };
  }

  /**
   * The owner of a session that may be deleted; null if there is none. It is "" for a record that is not readable: that may be
   * deleted, too, or nothing could ever clear it away.
   */
  #ownerOf(id: string): string | null {
    try {
      return this.read(id)?.owner ?? null;
    } catch (error) {
      if (isFleetError(error, "FLEET_STATE_CORRUPT")) return "";
      throw error;
    }
  }
}

function parseRecord(data: string): SessionRecord {
  return JSON.parse(data) as SessionRecord;
}
