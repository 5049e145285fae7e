import { FleetError, quote } from "../../../errors.js";
import { assertSessionId, isSessionId } from "../../../model/ids.js";
import type { SessionRecord } from "../../../model/session.js";
import type { OnUnreadable, SessionStore } from "../../ports.js";
import { UpdateQueue, UpdateQueues, type Writes } from "../../update-queue.js";
import { type Documents, parseObject, type Stored } from "./documents.js";
import { AT_ONCE, RecordSet } from "./record-set.js";

/** The records of sessions, and for each owner a set of session ids. */
export class SessionDocuments implements SessionStore {
  readonly #documents: Documents;
  readonly #writes: Writes;
  readonly #deadlineMs: number;
  readonly #records: RecordSet<SessionRecord>;
  readonly #updates = new UpdateQueues<SessionRecord>((id) => this.#updatesOf(id));

  constructor(documents: Documents, writes: Writes, deadlineMs: number) {
    this.#writes = writes;
    this.#documents = documents;
    this.#deadlineMs = deadlineMs;
    this.#records = new RecordSet(documents, documents.keys.sessions, (id) => this.#key(id), isSessionId);
  }

  async read(id: string): Promise<SessionRecord | null> {
    return await this.#records.read(id);
  }

  async create(record: SessionRecord): Promise<void> {
    const { id } = record;
    if (await this.#records.commit(id, null, JSON.stringify(record), this.#ownedBy(record))) return;
    throw new FleetError("FLEET_SESSION_EXISTS", `There is already a session ${quote(id)}.`);
  }

  async update<T>(id: string, change: (draft: SessionRecord) => T): Promise<T> {
    const update = this.#updates.update(id, (draft) => {
      const result = change(draft);
      if (draft.id !== id) throw new FleetError("FLEET_INTERNAL", `The id of session ${quote(id)} cannot change.`);
      return result;
    });
    return await this.#writes.track(update);
  }

  /** Also deletes the session's lease and the queue for it. */
  async delete(id: string): Promise<boolean> {
    const { keys } = this.#documents;
    // Delete even an unreadable record, because nothing else would. Its owner is not known.
    const record = await this.#records.readIfReadable(id);
    const besides = [keys.lease(id), keys.queue(id), keys.places(id)];
    return (await this.#records.remove(id, null, { also: record && this.#ownedBy(record), besides })) === "ok";
  }

  /** Does not delete the sessions' leases, because the caller may hold them. The leases expire. */
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
    const all = await this.#records.findAll(ids);
    const agreed = all.map((found) => (found !== null && agree(found.record) ? found : null));
    return await Promise.all(
      agreed.map(async (found, index) => {
        if (found === null) return "stays";
        return await this.#records.remove(ids[index] ?? "", found.stored, { also: this.#ownedBy(found.record) });
      }),
    );
  }

  async list(onUnreadable?: OnUnreadable): Promise<SessionRecord[]> {
    return [...(await this.#records.list(onUnreadable)).values()];
  }

  async count(owner: string | null): Promise<number> {
    return await this.#documents.count(this.#setOf(owner));
  }

  async ids(owner: string | null): Promise<string[]> {
    const ids = new Set<string>();
    for await (const some of this.#documents.connection.membersOf(this.#setOf(owner), AT_ONCE))
      for (const id of some.filter(isSessionId)) ids.add(id);
    return [...ids];
  }

  #setOf(owner: string | null): string {
    const { keys } = this.#documents;
    return owner === null ? keys.sessions : keys.ownedBy(owner);
  }

  #updatesOf(id: string): UpdateQueue<SessionRecord, Stored> {
    const key = this.#key(id);
    const parse = (data: string) => parseObject<SessionRecord>(key, data);
    return new UpdateQueue({
      where: key,
      deadlineMs: this.#deadlineMs,
      parse,
      load: async () => {
        const found = await this.#records.find(id);
        if (found === null) throw new FleetError("FLEET_SESSION_NOT_FOUND", `There is no session ${quote(id)}.`);
        return found.stored;
      },
      commit: async (base, data) => await this.#records.commit(id, base, data, this.#ownedBy(parse(data))),
    });
  }

  #ownedBy({ owner }: SessionRecord): string {
    return this.#documents.keys.ownedBy(owner);
  }

  #key(id: string): string {
    assertSessionId(id);
    return this.#documents.keys.session(id);
  }
}
