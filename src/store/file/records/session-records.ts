import { FleetError, quote } from "../../../errors.js";
import type { SessionRecord } from "../../../model/session.js";
import type { OnUnreadable, SessionStore } from "../../ports.js";
import type { StoreContext } from "../context.js";
import type { LeaseRecords } from "./lease-records.js";
import { OwnedSessions } from "./owned-sessions.js";
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
