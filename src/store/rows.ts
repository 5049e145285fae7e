/**
 * A kind of record. It is declared once, with everything that the store must know about it.
 *
 * @template T the content of a record, which must survive `JSON.stringify`
 */
export interface Kind<T extends object> {
  /** Lower-case letters and hyphens. Unique in the fleet. */
  readonly name: string;
  /**
   * `fleet`: all hosts share the rows, and they survive a power failure. `use`: all hosts share them, but they must
   * only survive the death of a process, such as a lease. `host`: they are only on this host, and survive a power
   * failure.
   */
  readonly home: "fleet" | "use" | "host";
  /** Throws for a text that cannot be the id of a record. */
  readonly assertId: (id: string) => void;
  /**
   * The indexes. Each returns the value under which `ids` and `count` find a record; null: the index omits the record.
   */
  readonly by: Readonly<Record<string, (record: T) => string | null>>;
  /**
   * When a record ends, in milliseconds since the epoch by the store's clock; null: when it is deleted. No read returns
   * a record that has ended, so nobody needs to delete it.
   */
  readonly endsAt: (record: T) => number | null;
  /**
   * The part of a record that decides who may do what. A process that has read or written a record refuses an earlier
   * one with another part, which somebody with access to the database can put back, because its signature stays valid.
   * Default: none
   */
  readonly rights: ((record: T) => unknown) | null;
  /** Whether changes must succeed even if the database takes no more data, as for heartbeats and leases. */
  readonly isVital: boolean;
}

/** A kind of any records. */
// biome-ignore lint/suspicious/noExplicitAny: a kind of any records is not a kind of objects, because its functions take them
export type AnyKind = Kind<any>;

/** Declares a kind of record. Without further options, its rows belong to the fleet, have no index and do not end. */
export function kind<T extends object>(
  name: string,
  {
    home = "fleet",
    assertId = () => undefined,
    by = {},
    endsAt = () => null,
    rights = null,
    isVital = false,
  }: Partial<Omit<Kind<T>, "name">> = {},
): Kind<T> {
  return { name, home, assertId, by, endsAt, rights, isVital };
}

/** A record as it was read. */
export interface Row<T> {
  readonly id: string;
  /** Differs from the version of every other row that ever had this id. */
  readonly version: string;
  /** Do not change it, because {@link Change.from} needs it as it was read. */
  readonly record: T;
}

/** One part of a commit: creates, replaces or deletes a record. */
export interface Change<T extends object> {
  readonly kind: Kind<T>;
  readonly id: string;
  /** The row that the change replaces or deletes. Null: there must be none. */
  readonly from: Row<T> | null;
  /** The new record. Null: deletes it. */
  readonly to: T | null;
}

/** The changes of one commit, which may have different kinds. */
// biome-ignore lint/suspicious/noExplicitAny: a kind of any records is not a kind of objects, because its functions take them
export type Changes = readonly Change<any>[];

/** Which records of a kind a call is about. */
export interface Selection {
  /** Only the records that this index finds under `value`. Default: all records. */
  readonly by?: string;
  readonly value?: string;
  /** Only ids that follow this one in the order of their UTF-8 bytes. */
  readonly after?: string;
  /** At most this many ids. */
  readonly limit?: number;
}

/**
 * A database with rows. Everything that knows what a session, a lease or a token is stands above this interface. The
 * contract of the store (`test/contract/`) runs with every adapter.
 *
 * @throws FleetError (every method) `FLEET_STATE_BUSY` while another process holds the database,
 * `FLEET_STATE_UNWRITABLE` if the medium refuses the call (full, read-only), `FLEET_STATE_CORRUPT` if it is damaged,
 * and for Redis `FLEET_STORE_UNAVAILABLE`, `FLEET_STORE_UNUSABLE`, `FLEET_STATE_UNSIGNED` and `FLEET_STATE_LOST`
 */
export interface Rows {
  /** Reads rows as they are at one moment. Null for each id without a row. */
  read<T extends object>(kind: Kind<T>, ids: readonly string[]): Promise<(Row<T> | null)[]>;

  /**
   * Makes all changes, or none of them if one of the rows is no longer the row that the change names. Once the promise
   * resolves with true, the changes are stored. If it rejects with `FLEET_STORE_UNAVAILABLE`, they may be stored.
   *
   * @param changes all of one `home`, and at most one for each row
   * @returns whether the changes were made
   */
  commit(changes: Changes): Promise<boolean>;

  /**
   * Deletes a row even if it cannot be read, unless a newer version wrote it.
   *
   * @returns whether there was a row
   */
  erase(kind: AnyKind, id: string): Promise<boolean>;

  /**
   * The ids of records, sorted by their UTF-8 bytes. May contain ids of records that have ended or that were created or
   * deleted during the call.
   */
  ids<T extends object>(kind: Kind<T>, selection?: Selection): Promise<string[]>;

  /** How many ids {@link ids} would return. Reads no records. */
  count<T extends object>(kind: Kind<T>, selection?: Pick<Selection, "by" | "value">): Promise<number>;

  /** The database's clock, in milliseconds since the epoch. All processes that use the database share it. */
  now(): Promise<number>;

  /** Waits for the calls under way, and closes the database. The next call opens it again. */
  close(): Promise<void>;
}

/** The databases that have the rows of each home. Two homes may share one. */
export type Homes = Readonly<Record<Kind<object>["home"], Rows>>;

const DEADLINE_MS = 30_000;

/** All rows of a fleet, in the databases of their homes. */
export class FleetRows implements Omit<Rows, "now"> {
  readonly #homes: Homes;
  readonly #underWay = new Set<Promise<unknown>>();
  /** How long an update competes with other writers, in milliseconds. */
  readonly deadlineMs: number;

  constructor(homes: Homes, deadlineMs = DEADLINE_MS) {
    this.#homes = homes;
    this.deadlineMs = deadlineMs;
  }

  async read<T extends object>(kind: Kind<T>, ids: readonly string[]): Promise<(Row<T> | null)[]> {
    return await this.#homes[kind.home].read(kind, ids);
  }

  async commit(changes: Changes): Promise<boolean> {
    const [home = "fleet", ...others] = new Set(changes.map(({ kind }) => kind.home));
    if (others.length === 0) return await this.#homes[home].commit(changes);
    throw new RangeError("the changes of a commit belong to several databases");
  }

  async erase(kind: AnyKind, id: string): Promise<boolean> {
    return await this.#homes[(kind as Kind<object>).home].erase(kind, id);
  }

  async ids<T extends object>(kind: Kind<T>, selection?: Selection): Promise<string[]> {
    return await this.#homes[kind.home].ids(kind, selection);
  }

  async count<T extends object>(kind: Kind<T>, selection?: Pick<Selection, "by" | "value">): Promise<number> {
    return await this.#homes[kind.home].count(kind, selection);
  }

  /** The clock of the database that has this kind, in milliseconds. */
  async now({ home }: Pick<Kind<never>, "home">): Promise<number> {
    return await this.#homes[home].now();
  }

  /** Makes {@link close} wait for work that consists of several calls. */
  async track<T>(work: Promise<T>): Promise<T> {
    this.#underWay.add(work);
    try {
      return await work;
    } finally {
      this.#underWay.delete(work);
    }
  }

  async close(): Promise<void> {
    while (this.#underWay.size > 0) await Promise.allSettled(this.#underWay);
    for (const rows of new Set(Object.values(this.#homes))) await rows.close();
  }
}
