import { FleetError, quote } from "../../base/errors.js";
import { assertSessionId, isSessionId } from "../../base/ids.js";
import type { SessionRecord } from "../../base/session.js";
import { sha256 } from "../../base/values/text.js";
import type { OnUnreadable, SessionStore } from "../ports.js";
import { UpdateQueue, UpdateQueues, type Writes } from "../update-queue.js";
import { AT_ONCE, type Documents, type Found, parseObject, RecordSet, type Stored } from "./documents.js";

/** How many sessions one process remembers, so that they use at most about 30 MB. */
const MOST_REMEMBERED = 100_000;

interface Version {
  createdAt: string;
  revision: number;
  /** A digest of the owner and the members. */
  rights: string;
}

/**
 * Refuses a record that is not newer than the newest one that this process has read or written, if its owner or members
 * differ. An account with write access to Redis can put such a record back, because its signature stays valid.
 */
class SessionRecords extends RecordSet<SessionRecord> {
  /** In the order of their last use. */
  readonly #newest = new Map<string, Version>();

  override async findAll(ids: readonly string[]): Promise<(Found<SessionRecord> | null)[]> {
    // Compare with what was known before the read, because this process may commit a newer record during the read.
    const known = ids.map((id) => this.#newest.get(id));
    const all = await super.findAll(ids);
    for (const [index, found] of all.entries()) {
      if (found === null) continue;
      const { id } = found.record;
      const version = versionOf(found.record, found.stored.revision);
      const newest = known[index];
      if (newest !== undefined && !isNewer(version, newest) && version.rights !== newest.rights) {
        throw replaced(id, version, newest);
      }
      this.#remember(id, version);
    }
    return all;
  }

  override async commit(id: string, from: Stored | null, data: string, also: string): Promise<boolean> {
    const known = this.#newest.get(id);
    if (!(await super.commit(id, from, data, also))) return false;
    const version = versionOf(parseObject<SessionRecord>(id, data), (from?.revision ?? 0) + 1);
    if (from === null) {
      // A new session is newer than a deleted one, even if the clock of that one's host was ahead.
      this.#newest.delete(id);
    } else if (known !== undefined && !isNewer(version, known)) {
      // Redis has lost changes. The lost records must not count as newer if somebody puts them back.
      version.revision = known.revision;
      version.createdAt = known.createdAt;
    }
    this.#remember(id, version);
    return true;
  }

  #remember(id: string, version: Version): void {
    const latest = this.#newest.get(id);
    this.#newest.delete(id);
    this.#newest.set(id, latest !== undefined && isNewer(latest, version) ? latest : version);
    if (this.#newest.size <= MOST_REMEMBERED) return;
    // Forget many at once, because finding the first key of a map is slow after many deletions.
    for (const first of [...this.#newest.keys()].slice(0, MOST_REMEMBERED / 10)) this.#newest.delete(first);
  }
}

function versionOf({ createdAt, owner, members }: SessionRecord, revision: number): Version {
  return { createdAt, revision, rights: sha256(JSON.stringify([owner, members])) };
}

/** Compares the times first, because the revisions of a session that was created again begin at 1. */
function isNewer(one: Version, other: Version): boolean {
  if (one.createdAt !== other.createdAt) return one.createdAt > other.createdAt;
  return one.revision > other.revision;
}

function replaced(id: string, { revision }: Version, newest: Version): FleetError {
  const message = `The record of session ${quote(id)} in Redis has revision ${revision} and another owner or other members than revision ${newest.revision}, which this process knows. The fleet does not use it.`;
  return new FleetError("FLEET_STATE_UNSIGNED", message, {
    suggestions: [
      "Find out who else can write to Redis, and change its password.",
      "If Redis lost changes in a failover: restart serve on all hosts, then set the members of the session again.",
    ],
  });
}

/** The records of sessions, and for each owner a set of session ids. */
export class SessionDocuments implements SessionStore {
  readonly #documents: Documents;
  readonly #writes: Writes;
  readonly #deadlineMs: number;
  readonly #records: SessionRecords;
  readonly #updates = new UpdateQueues<SessionRecord>((id) => this.#updatesOf(id));

  constructor(documents: Documents, writes: Writes, deadlineMs: number) {
    this.#writes = writes;
    this.#documents = documents;
    this.#deadlineMs = deadlineMs;
    this.#records = new SessionRecords(documents, documents.keys.sessions, (id) => this.#key(id), isSessionId);
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
