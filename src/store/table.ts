import { FleetError, isFleetError } from "../base/errors.js";
import { busyError, isDamaged, isUnreadable, type UnreadableError } from "./failures.js";
import type { Change, FleetRows, Kind, Row, Selection } from "./rows.js";

/** How many rows one read or one commit contains. */
const AT_ONCE = 200;

/** The record of a row while it is being changed. Set `record` to null to delete it, or change it in place. */
export interface Draft<T> {
  record: T | null;
}

interface Pending<T> {
  change: (draft: Draft<T>, now: number, given: unknown) => unknown;
  look: (() => Promise<unknown>) | undefined;
  resolve: (value: unknown) => void;
  reject: (error: unknown) => void;
}

/** Receives the id of a record that cannot be read, and the error that a read of it throws. */
export type OnUnreadable = (id: string, error: UnreadableError) => void;

/** All records of one kind. */
export class Table<T extends object> {
  readonly rows: FleetRows;
  readonly kind: Kind<T>;
  /** The updates that wait for each row that this process is updating. */
  readonly #pending = new Map<string, Pending<T>[]>();

  constructor(rows: FleetRows, kind: Kind<T>) {
    this.rows = rows;
    this.kind = kind;
  }

  async read(id: string): Promise<T | null> {
    const [record = null] = await this.readMany([id]);
    return record;
  }

  async readMany(ids: readonly string[]): Promise<(T | null)[]> {
    for (const id of ids) this.kind.assertId(id);
    return (await this.rows.read(this.kind, ids)).map((row) => row?.record ?? null);
  }

  /** @returns false, and changes nothing, if there already is such a record */
  async create(id: string, record: T): Promise<boolean> {
    this.kind.assertId(id);
    return await this.rows.commit([{ kind: this.kind, id, from: null, to: record }]);
  }

  /** Creates or replaces a record. If others do so at the same time, one of them wins. */
  async put(id: string, record: T): Promise<void> {
    await this.update(id, (draft) => {
      draft.record = record;
    });
  }

  /** Deletes a record, even one that cannot be read. @returns whether it existed */
  async delete(id: string): Promise<boolean> {
    const deleting = this.update(id, (draft) => {
      const existed = draft.record !== null;
      draft.record = null;
      return existed;
    });
    return await deleting.catch(async (error: unknown) => {
      if (!isDamaged(error)) throw error;
      return await this.rows.track(this.rows.erase(this.kind, id));
    });
  }

  /**
   * Changes a record atomically. `change` must be synchronous and free of side effects, because it runs again if
   * another writer commits first. If it throws, nothing is written. Updates that this process makes at the same time
   * share a commit.
   *
   * @param change gets the newest record, the time of the database's clock in milliseconds, and the result of `look`
   * @param look reads what else the change depends on. It runs after the record was read. So if somebody changes the
   * record before the commit, both run again.
   * @returns the value that the last run of `change` returned
   * @throws FleetError `FLEET_STATE_BUSY` if other writers commit first again and again
   */
  async update<R, G = undefined>(
    id: string,
    change: (draft: Draft<T>, now: number, given: G) => R,
    look?: () => Promise<G>,
  ): Promise<R> {
    this.kind.assertId(id);
    const work = new Promise<R>((resolve, reject) => {
      const pending: Pending<T> = {
        change: change as Pending<T>["change"],
        look,
        resolve: resolve as (value: unknown) => void,
        reject,
      };
      const waiting = this.#pending.get(id);
      if (waiting !== undefined) waiting.push(pending);
      else {
        this.#pending.set(id, [pending]);
        void this.#drain(id);
      }
    });
    return await this.rows.track(work);
  }

  /** Yields the records of a selection in the order of their ids. */
  async *each(selection: Selection = {}, onUnreadable?: OnUnreadable): AsyncGenerator<Row<T>> {
    let { after } = selection;
    for (;;) {
      const ids = await this.rows.ids(this.kind, {
        ...selection,
        ...(after === undefined ? {} : { after }),
        limit: AT_ONCE,
      });
      // The lists of ids in Redis are not signed.
      const valid = ids.filter((id) => this.isId(id));
      for (const row of await this.#readAll(valid, onUnreadable)) if (row !== null) yield row;
      if (ids.length < AT_ONCE) return;
      after = ids.at(-1);
    }
  }

  isId(id: string): boolean {
    try {
      this.kind.assertId(id);
      return true;
    } catch {
      return false;
    }
  }

  async list(selection: Selection = {}, onUnreadable?: OnUnreadable): Promise<T[]> {
    const records: T[] = [];
    for await (const { record } of this.each(selection, onUnreadable)) records.push(record);
    return records;
  }

  /**
   * Deletes the records for which `agree` returns true, each atomically. `agree` always gets the newest record, and may
   * run more than once for it.
   *
   * @returns the deleted ids
   */
  async deleteMany(ids: readonly string[], agree: (record: T) => boolean): Promise<string[]> {
    const deleted: string[] = [];
    for (let at = 0; at < ids.length; at += AT_ONCE) {
      const rows = await this.rows.read(this.kind, [...new Set(ids.slice(at, at + AT_ONCE))]);
      const agreed = rows.filter((row) => row !== null && agree(row.record)) as Row<T>[];
      const changes = agreed.map((row): Change<T> => ({ kind: this.kind, id: row.id, from: row, to: null }));
      if (changes.length === 0) continue;
      if (await this.rows.commit(changes)) deleted.push(...agreed.map(({ id }) => id));
      else for (const { id } of agreed) if (await this.#deleteIf(id, agree)) deleted.push(id);
    }
    return deleted;
  }

  async #deleteIf(id: string, agree: (record: T) => boolean): Promise<boolean> {
    return await this.update(id, (draft) => {
      if (draft.record === null || !agree(draft.record)) return false;
      draft.record = null;
      return true;
    });
  }

  /** Reads rows. If one of them cannot be read, reads each alone, and reports those. */
  async #readAll(ids: readonly string[], onUnreadable: OnUnreadable | undefined): Promise<(Row<T> | null)[]> {
    if (onUnreadable === undefined) return await this.rows.read(this.kind, ids);
    return await this.rows.read(this.kind, ids).catch(async (error: unknown) => {
      if (!isUnreadable(error)) throw error;
      return await Promise.all(ids.map(async (id) => await this.#readOne(id, onUnreadable)));
    });
  }

  async #readOne(id: string, onUnreadable: OnUnreadable): Promise<Row<T> | null> {
    try {
      return (await this.rows.read(this.kind, [id]))[0] ?? null;
    } catch (error) {
      if (!isUnreadable(error)) throw error;
      onUnreadable(id, error);
      return null;
    }
  }

  async #drain(id: string): Promise<void> {
    for (let waiting = this.#pending.get(id) ?? []; waiting.length > 0; waiting = this.#pending.get(id) ?? []) {
      this.#pending.set(id, []);
      try {
        for (const settle of await this.#commit(id, waiting)) settle();
      } catch (error) {
        // If the database does not answer, do not let the others wait for it once more.
        const isAway = isFleetError(error, "FLEET_STORE_UNAVAILABLE");
        for (const { reject } of [...waiting, ...(isAway ? (this.#pending.get(id)?.splice(0) ?? []) : [])])
          reject(error);
      }
    }
    this.#pending.delete(id);
  }

  /** @returns functions that settle the promises of the callers */
  async #commit(id: string, waiting: readonly Pending<T>[]): Promise<(() => void)[]> {
    const until = performance.now() + this.rows.deadlineMs;
    do {
      const [[row = null], now] = await Promise.all([this.rows.read(this.kind, [id]), this.rows.now(this.kind)]);
      const before = JSON.stringify(row?.record ?? null);
      const given = await Promise.all(waiting.map(async ({ look }) => await look?.()));
      const { text, settles } = applied(before, waiting, now, given);
      if (text === before) return settles;
      const change = { kind: this.kind, id, from: row, to: JSON.parse(text) as T | null };
      if (await this.rows.commit([change])) return settles;
    } while (performance.now() < until);
    throw busyError(
      `${this.kind.name} ${id}`,
      `did not become free within ${this.rows.deadlineMs / 1_000} s: other writers kept changing it`,
    );
  }
}

/** Runs the changes in order. If a change throws, discards its draft. */
function applied<T>(
  before: string,
  waiting: readonly Pending<T>[],
  now: number,
  given: readonly unknown[],
): { text: string; settles: (() => void)[] } {
  let text = before;
  const settles = waiting.map(({ change, resolve, reject }, index) => {
    try {
      const draft: Draft<T> = { record: JSON.parse(text) as T | null };
      const value = change(draft, now, given[index]);
      if (value instanceof Promise) {
        value.catch(() => "the caller gets the next error instead");
        throw new FleetError(
          "FLEET_INTERNAL",
          "A change to the store must be synchronous; this one returned a promise.",
        );
      }
      text = JSON.stringify(draft.record);
      return () => resolve(value);
    } catch (error) {
      return () => reject(error);
    }
  });
  return { text, settles };
}
