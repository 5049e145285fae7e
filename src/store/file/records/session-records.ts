import { existsSync, mkdirSync, readdirSync, renameSync } from "node:fs";
import { rename } from "node:fs/promises";
import { join } from "node:path";
import { setImmediate as yieldToOthers } from "node:timers/promises";
import { FleetError, isFleetError, quote, systemCode } from "../../../errors.js";
import type { SessionRecord } from "../../../model/session.js";
import { assertSessionId, isSessionId } from "../../../model/session-id.js";
import type { SessionStore } from "../../ports.js";
import { damageWarning, describeDamage } from "../commit/damage.js";
import { type Base, Document } from "../commit/document.js";
import { scratchName, syncFolder } from "../commit/durable.js";
import { readHead, TOMBSTONE } from "../commit/head.js";
import { createDocument, discard } from "../commit/new-document.js";
import { raiseTombstone } from "../commit/tombstone.js";
import type { StoreContext } from "../context.js";
import { corruptError, mediumError } from "../failures.js";
import type { LeaseRecords } from "./lease-records.js";
import { OwnedSessions } from "./owned-sessions.js";

const KEEP = 2;
/** Reads are synchronous, so yield to the rest of the process after this many records. */
const RECORDS_AT_ONCE = 100;

/**
 * One folder for each record, so that access to a record costs the same however many there are. `sessions/` contains
 * nothing but these folders, for two reasons: an id may look like one of the store's scratch names, and a sweep must not
 * have to list 10,000 names. So unfinished creations and deletions are in the state folder itself.
 */
export class SessionRecords implements SessionStore {
  readonly #context: StoreContext;
  readonly #leases: LeaseRecords;
  readonly #folder: string;
  readonly #owned: OwnedSessions;
  /** The documents with an update under way. */
  readonly #documents = new Map<string, Document<SessionRecord>>();

  constructor(context: StoreContext, leases: LeaseRecords) {
    this.#context = context;
    this.#leases = leases;
    this.#folder = join(context.root, "sessions");
    this.#owned = new OwnedSessions(context);
  }

  async read(id: string): Promise<SessionRecord | null> {
    this.#context.checkRoot();
    return this.#read(id);
  }

  #read(id: string): SessionRecord | null {
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

  /** Removes the folder of a deleted record, if the process that deleted it died first. */
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
      // A record of an earlier version has no file there.
      this.#owned.add(owner, id);
      return updated;
    } finally {
      if (document.pending === undefined) this.#documents.delete(id);
    }
  }

  async delete(id: string): Promise<boolean> {
    this.#context.checkRoot();
    const deleted = await this.#delete(id);
    // Delete the lease last, so that its holder keeps it until the record is gone.
    await this.#leases.delete(id);
    return deleted;
  }

  async #delete(id: string): Promise<boolean> {
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

  /** Syncs to disk once for all of them. */
  async deleteMany(ids: readonly string[], agree: (record: SessionRecord) => boolean): Promise<string[]> {
    this.#context.checkRoot();
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
   * The tombstone is the deletion. A later change finds no record, and `agree` has seen every earlier change. Moving
   * the folder away only makes room for a new record.
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

  /** Moves the folder of a deleted record away, unless a new record has its id by now. */
  #bury(id: string, trash: string): void {
    const folder = this.#folderOf(id);
    const buried = join(trash, id);
    try {
      renameSync(folder, buried);
      // This happens only if this process was suspended after the tombstone. Others moved the folder away and created
      // the session again.
      if (readHead(buried, KEEP)?.data !== TOMBSTONE) renameSync(buried, folder);
    } catch (error) {
      if (systemCode(error) !== "ENOENT") throw error; // another process moved it
    }
  }

  async list(): Promise<SessionRecord[]> {
    this.#context.checkRoot();
    const records: SessionRecord[] = [];
    const ids = this.#ids();
    for (const [index, id] of ids.entries()) {
      if (index % RECORDS_AT_ONCE === RECORDS_AT_ONCE - 1) await yieldToOthers();
      const record = this.#read(id);
      if (record !== null) records.push(record);
    }
    return records;
  }

  async count(owner: string | null, limit: number): Promise<number> {
    this.#context.checkRoot();
    if (owner === null) return this.#ids().length;
    return this.#owned.count(owner, limit, (id) => {
      try {
        return this.#read(id)?.owner === owner;
      } catch (error) {
        // Nobody knows the owner. The record counts until somebody deletes or repairs it.
        if (isFleetError(error, "FLEET_STATE_CORRUPT")) return true;
        throw error;
      }
    });
  }

  /** Whether there is a record, even an unreadable one. */
  has(id: string): boolean {
    return existsSync(this.#folderOf(id));
  }

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
      // A file manager may have left a file here.
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
      // Do not wait for other writers. One record has so few of them that the retries cost less than a lock.
      enter: async () => async () => undefined,
      committed: async () => undefined,
    });
  }

  #load(id: string): Base | null {
    const folder = this.#folderOf(id);
    const head = readHead(folder, KEEP);
    if (head === undefined) return null;
    // A record's folder appears together with its first revision. If there is none, the record was lost, not
    // interrupted.
    if (head.data === undefined) {
      const why = head.damaged.map(({ rev, reason }) => `revision ${rev}: ${reason}`).join("; ");
      throw corruptError(folder, why || "its folder is empty", `mv ${folder} ${this.#folder}-corrupt-${id}`);
    }
    if (head.data === TOMBSTONE) return null;
    // A record's folder appears together with its first revision, so a folder without a revision has lost something.
    if (parseRecord(head.data).id !== id) return null;
    const damaged = head.damaged.map(({ rev }) => rev);
    if (damaged.length > 0) {
      const damage = describeDamage(`the record of session ${quote(id)}`, folder, head.damaged);
      const consequence =
        "The fleet uses the previous revision and lost the last change, such as the time of last use. The conversation is kept elsewhere.";
      this.#context.warn(damageWarning(damage, consequence));
    }
    const mend = damaged.length > 0;
    return { rev: head.rev, top: head.top, next: head.top + 1, data: head.data, damaged, mend };
  }

  /**
   * The owner of a session that is about to be deleted; null if there is no record. It is "" for an unreadable record,
   * which may be deleted because nothing else could clear it away.
   */
  #ownerOf(id: string): string | null {
    try {
      return this.#read(id)?.owner ?? null;
    } catch (error) {
      if (isFleetError(error, "FLEET_STATE_CORRUPT")) return "";
      throw error;
    }
  }
}

function parseRecord(data: string): SessionRecord {
  return JSON.parse(data) as SessionRecord;
}
