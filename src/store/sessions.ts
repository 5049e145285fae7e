import { FleetError, quote } from "../base/errors.js";
import { assertSessionId, isSessionId } from "../base/ids.js";
import type { SessionRecord } from "../base/session.js";
import type { LeaseTable } from "./leases.js";
import { type FleetRows, kind } from "./rows.js";
import type { Store } from "./store.js";
import { type OnUnreadable, Table } from "./table.js";

export const SESSIONS = kind<SessionRecord>("session", {
  assertId: assertSessionId,
  by: { owner: ({ owner }) => owner },
  rights: ({ owner, members }) => [owner, members],
});

/** The records of sessions. A session's lease ends when its record is deleted. */
export class SessionTable {
  readonly #table: Table<SessionRecord>;
  readonly #leases: LeaseTable;

  constructor(rows: FleetRows, leases: LeaseTable) {
    this.#table = new Table(rows, SESSIONS);
    this.#leases = leases;
  }

  async read(id: string): Promise<SessionRecord | null> {
    return await this.#table.read(id);
  }

  /** Records a new session. @throws FleetError `FLEET_SESSION_EXISTS` when any user has a session with that id. */
  async create(record: SessionRecord): Promise<void> {
    if (await this.#table.create(record.id, record)) return;
    throw new FleetError("FLEET_SESSION_EXISTS", `There is already a session ${quote(record.id)}.`);
  }

  /**
   * Changes one record as {@link Table.update} does. The cost does not depend on the number of other records.
   *
   * @throws FleetError `FLEET_SESSION_NOT_FOUND`.
   */
  async update<T>(id: string, change: (draft: SessionRecord) => T): Promise<T> {
    return await this.#table.update(id, ({ record }) => {
      if (record === null) throw new FleetError("FLEET_SESSION_NOT_FOUND", `There is no session ${quote(id)}.`);
      const result = change(record);
      if (record.id === id) return result;
      throw new FleetError("FLEET_INTERNAL", `The id of session ${quote(id)} cannot change.`);
    });
  }

  /** Deletes a record. Resolves with true if it existed. */
  async delete(id: string): Promise<boolean> {
    const existed = await this.#table.delete(id);
    // Last, so that the holder keeps the lease until the record is gone.
    await this.#leases.forget(id);
    return existed;
  }

  /**
   * Deletes the records for which `agree` returns true, each atomically. `agree` always gets the newest state. It may
   * run more than once for a record, so it must be free of side effects. Resolves with the deleted ids.
   */
  async deleteMany(ids: readonly string[], agree: (record: SessionRecord) => boolean): Promise<string[]> {
    return await this.#table.deleteMany(ids, agree);
  }

  /**
   * Counts the sessions of a user, or of all users if `owner` is null. The cost does not depend on the sessions of
   * other users.
   */
  async count(owner: string | null): Promise<number> {
    return await this.#table.rows.count(SESSIONS, ownedBy(owner));
  }

  /** The ids of the sessions that {@link count} counts. Reads no records. */
  async ids(owner: string | null): Promise<string[]> {
    return (await this.#table.rows.ids(SESSIONS, ownedBy(owner))).filter(isSessionId);
  }

  /**
   * @param onUnreadable receives each record that cannot be read, and the list omits that record. Without
   * `onUnreadable`, such a record makes the call fail.
   */
  async list(onUnreadable?: OnUnreadable): Promise<SessionRecord[]> {
    return await this.#table.list({}, onUnreadable);
  }
}

function ownedBy(owner: string | null): { by?: string; value?: string } {
  return owner === null ? {} : { by: "owner", value: owner };
}

/**
 * The sessions whose records name this host or no host; if the store has no hosts, all sessions.
 *
 * @param onUnreadable as for `SessionStore.list`
 */
export async function sessionsOfThisHost(
  { hosts, sessions }: Store,
  onUnreadable?: OnUnreadable,
): Promise<SessionRecord[]> {
  const isHere = ({ host }: SessionRecord) => hosts === null || host === undefined || host === hosts.own;
  return (await sessions.list(onUnreadable)).filter(isHere);
}
