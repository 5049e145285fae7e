import { FleetError, isFleetError, quote } from "../../../errors.js";
import type { SessionRecord } from "../../../model/session.js";
import { assertSessionId } from "../../../model/session-id.js";
import { applyChanges, type Outcome } from "../../batch.js";
import type { SessionStore } from "../../ports.js";
import { UpdateQueue } from "../../update-queue.js";
import type { Connection } from "../link/connection.js";
import { busyError } from "../link/failures.js";
import type { Keys } from "../link/keys.js";
import { type Documents, type Listed, parseObject } from "./documents.js";

/** How many records are read or deleted together. */
const AT_ONCE = 200;

export interface SessionsOptions {
  connection: Connection;
  documents: Documents;
  keys: Keys;
  deadlineMs: number;
}

/**
 * One key for each record, and a set of all ids, which only `list` reads. So access to one record costs the same
 * however many there are.
 */
export class SessionDocuments implements SessionStore {
  readonly #options: SessionsOptions;
  /** The queues of sessions with an update under way. */
  readonly #updates = new Map<string, UpdateQueue<SessionRecord>>();

  constructor(options: SessionsOptions) {
    this.#options = options;
  }

  async read(id: string): Promise<SessionRecord | null> {
    const [stored = null] = await this.#options.documents.read([this.#key(id)]);
    return stored && parseObject(this.#key(id), stored.data);
  }

  async create(record: SessionRecord): Promise<void> {
    const { id } = record;
    if (
      await this.#options.documents.commit(this.#key(id), null, JSON.stringify(record), {
        listed: this.#listed(id, record.owner),
      })
    )
      return;
    throw new FleetError("FLEET_SESSION_EXISTS", `There is already a session ${quote(id)}.`);
  }

  async update<T>(id: string, change: (draft: SessionRecord) => T): Promise<T> {
    const updates = this.#updates.get(id) ?? this.#open(id);
    this.#updates.set(id, updates);
    try {
      return await updates.update((draft) => {
        const result = change(draft);
        if (draft.id !== id) throw new FleetError("FLEET_INTERNAL", `The id of session ${quote(id)} cannot change.`);
        return result;
      });
    } finally {
      if (updates.pending === undefined) this.#updates.delete(id);
    }
  }

  /**
   * Deletes the lease and its queue too. An unreadable record may be deleted, because nothing else could clear it away.
   */
  async delete(id: string): Promise<boolean> {
    const { keys, documents } = this.#options;
    const record = await this.read(id).catch((error: unknown) => {
      if (!isFleetError(error, "FLEET_STATE_CORRUPT")) throw error;
      return null;
    });
    return (
      (await documents.remove(this.#document(id, record?.owner), null, [
        keys.lease(id),
        keys.queue(id),
        keys.places(id),
      ])) === "ok"
    );
  }

  /**
   * It leaves the leases, because a holder may be the one who deletes. They expire by
   * themselves.
   */
  async deleteMany(ids: readonly string[], agree: (record: SessionRecord) => boolean): Promise<string[]> {
    const deleted: string[] = [];
    for (let at = 0; at < ids.length; at += AT_ONCE) {
      for (let left = ids.slice(at, at + AT_ONCE); left.length > 0; ) {
        const outcomes = await this.#deleteSome(left, agree);
        deleted.push(...left.filter((_, index) => outcomes[index] === "ok"));
        left = left.filter((_, index) => outcomes[index] === "conflict");
      }
    }
    return deleted;
  }

  async #deleteSome(ids: readonly string[], agree: (record: SessionRecord) => boolean): Promise<string[]> {
    const keys = ids.map((id) => this.#key(id));
    const stored = await this.#options.documents.read(keys);
    const agreed = stored.map((each, index) => {
      if (each === null) return null;
      const record = parseObject<SessionRecord>(keys[index] ?? "", each.data);
      return agree(record) ? { stored: each, owner: record.owner } : null;
    });
    return await Promise.all(
      ids.map(async (id, index) => {
        const each = agreed[index] ?? null;
        if (each === null) return "stays";
        return await this.#options.documents.remove(this.#document(id, each.owner), each.stored);
      }),
    );
  }

  async list(): Promise<SessionRecord[]> {
    const { connection, documents, keys } = this.#options;
    const records = new Map<string, SessionRecord>();
    for (let cursor = "0"; ; ) {
      const [next, ids] = await connection.scan(keys.sessions, cursor, AT_ONCE);
      // Read even if there are no ids, because the read detects whether the database lost them.
      const stored = await documents.read(ids.map((id) => this.#key(id)));
      for (const [index, id] of ids.entries()) {
        const each = stored[index] ?? null;
        // Null if it was deleted after the scan.
        if (each !== null) records.set(id, parseObject(this.#key(id), each.data));
      }
      if (next === "0") return [...records.values()];
      cursor = next;
    }
  }

  async count(owner: string | null): Promise<number> {
    const { documents, keys } = this.#options;
    return await documents.count(owner === null ? keys.sessions : keys.ownedBy(owner));
  }

  async settled(): Promise<void> {
    await Promise.all([...this.#updates.values()].map(({ pending }) => pending));
  }

  #open(id: string): UpdateQueue<SessionRecord> {
    const key = this.#key(id);
    const { deadlineMs } = this.#options;
    return new UpdateQueue({
      deadlineMs,
      enter: async () => async () => undefined,
      attempt: (changes) => this.#attempt(id, key, changes),
      busy: () => busyError(key, deadlineMs),
      failure: (error) => error,
    });
  }

  async #attempt(
    id: string,
    key: string,
    changes: readonly ((draft: SessionRecord) => unknown)[],
  ): Promise<Outcome[] | undefined> {
    const { documents } = this.#options;
    const [base = null] = await documents.read([key]);
    if (base === null) throw new FleetError("FLEET_SESSION_NOT_FOUND", `There is no session ${quote(id)}.`);
    const { data, outcomes } = applyChanges(base.data, (text) => parseObject<SessionRecord>(key, text), changes);
    if (data === base.data) return outcomes;
    const { owner } = parseObject<SessionRecord>(key, data);
    return (await documents.commit(key, base, data, { listed: this.#listed(id, owner) })) ? outcomes : undefined;
  }

  /** @param owner Undefined if it is not known, because the record is unreadable. */
  #listed(id: string, owner: string | undefined): Listed {
    const { keys } = this.#options;
    return { set: keys.sessions, member: id, ...(owner === undefined ? {} : { also: keys.ownedBy(owner) }) };
  }

  #document(id: string, owner: string | undefined): { key: string } & Listed {
    return { key: this.#key(id), ...this.#listed(id, owner) };
  }

  #key(id: string): string {
    assertSessionId(id);
    return this.#options.keys.session(id);
  }
}
