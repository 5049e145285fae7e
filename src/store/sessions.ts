import { FleetError, quote } from "../base/errors.js";
import { assertSessionId, isSessionId } from "../base/ids.js";
import type { SessionRecord } from "../base/session.js";
import type { Leases } from "./leases.js";
import type { OnUnreadable, SessionStore } from "./ports.js";
import { type FleetRows, kind } from "./rows.js";
import { Table } from "./table.js";

export const SESSIONS = kind<SessionRecord>("session", {
  assertId: assertSessionId,
  by: { owner: ({ owner }) => owner },
  rights: ({ owner, members }) => [owner, members],
});

/** The records of sessions. A session's lease ends when its record is deleted. */
export class Sessions implements SessionStore {
  readonly #table: Table<SessionRecord>;
  readonly #leases: Leases;

  constructor(rows: FleetRows, leases: Leases) {
    this.#table = new Table(rows, SESSIONS);
    this.#leases = leases;
  }

  async read(id: string): Promise<SessionRecord | null> {
    return await this.#table.read(id);
  }

  async create(record: SessionRecord): Promise<void> {
    if (await this.#table.create(record.id, record)) return;
    throw new FleetError("FLEET_SESSION_EXISTS", `There is already a session ${quote(record.id)}.`);
  }

  async update<T>(id: string, change: (draft: SessionRecord) => T): Promise<T> {
    return await this.#table.update(id, ({ record }) => {
      if (record === null) throw new FleetError("FLEET_SESSION_NOT_FOUND", `There is no session ${quote(id)}.`);
      const result = change(record);
      if (record.id === id) return result;
      throw new FleetError("FLEET_INTERNAL", `The id of session ${quote(id)} cannot change.`);
    });
  }

  async delete(id: string): Promise<boolean> {
    const existed = await this.#table.delete(id);
    // Last, so that the holder keeps the lease until the record is gone.
    await this.#leases.forget(id);
    return existed;
  }

  async deleteMany(ids: readonly string[], agree: (record: SessionRecord) => boolean): Promise<string[]> {
    return await this.#table.deleteMany(ids, agree);
  }

  async count(owner: string | null): Promise<number> {
    return await this.#table.rows.count(SESSIONS, ownedBy(owner));
  }

  async ids(owner: string | null): Promise<string[]> {
    return (await this.#table.rows.ids(SESSIONS, ownedBy(owner))).filter(isSessionId);
  }

  async list(onUnreadable?: OnUnreadable): Promise<SessionRecord[]> {
    return await this.#table.list({}, onUnreadable);
  }
}

function ownedBy(owner: string | null): { by?: string; value?: string } {
  return owner === null ? {} : { by: "owner", value: owner };
}
