import type { HostEntry, HostRecord } from "../model/host.js";
import type { Lease, LeaseAnswer, LeaseRequest } from "../model/lease.js";
import type { Placement, Purge, UserPlacement } from "../model/placement.js";
import type { Registry } from "../model/registry.js";
import type { KeyedTurn, SessionRecord } from "../model/session.js";
import type { TokenEnd, TokenRecord } from "../model/token.js";
import type { UnreadableError } from "./failures.js";
import type { LimitStore } from "./usage/limits-port.js";
import type { UsageStore } from "./usage/port.js";

/**
 * The contract between the fleet and the adapters that store its state. `file/` is the embedded default. `redis/`
 * serves many hosts. Every adapter must pass `test/contract/store.contract.ts`.
 *
 * Every adapter guarantees:
 * - A write whose promise has resolved is stored exactly once, no matter which process dies.
 * - A write whose promise has not resolved is stored completely or not at all.
 * - Two writers never undo each other's changes. `update` runs `change` on the newest state, and runs it again if
 *   another writer commits first.
 *
 * Each `list` returns the records in any order. It may omit a record that is created or deleted during the call.
 */
export interface Store {
  readonly kind: "file" | "redis";

  /**
   * The hosts that share this store, or null if it serves a single host. Each host has its own registry. All hosts
   * share sessions, leases, tokens and placements.
   */
  readonly hosts: Hosts | null;

  readonly registry: RegistryStore;
  readonly sessions: SessionStore;
  readonly leases: LeaseStore;
  readonly tokens: TokenStore;
  readonly placements: PlacementStore;
  readonly keyedTurns: KeyedTurnStore;
  readonly purges: PurgeStore;
  readonly usage: UsageStore;
  readonly limits: LimitStore;

  /** The key for the pseudonyms on all hosts: 64 hexadecimal digits. If there is none, `offered` becomes the key. */
  pseudonymKey(offered: string): Promise<string>;

  /** The clock for the expiry of tokens, in milliseconds since the epoch. All processes that use the store share it. */
  now(): Promise<number>;

  /** Measures one small operation on the store, for `doctor`. Leaves nothing behind. @throws like every other method */
  probe(): Promise<StoreProbe>;

  /** Removes the scratch files of killed writers everywhere in the store. A write removes only those in its folder. */
  sweep(): Promise<void>;

  /** Removes old revisions of records, and copies of damaged records, if they contain one of the texts. */
  forgetOlder(texts: readonly string[]): Promise<void>;

  /**
   * Returns the problems that reads have found since the last call. The store has repaired each problem or worked around it.
   */
  takeWarnings(): string[];

  /** Waits for the writes under way, and then closes everything that the adapter has open. */
  close(): Promise<void>;
}

export interface StoreProbe {
  /**
   * How long the operation took, in milliseconds. In the file store, it is a write that is synced to disk. Null if
   * nothing has been stored so far.
   */
  durationMs: number | null;
  /** How far the store's clock is ahead of this machine's, in milliseconds; 0 if they are the same clock. */
  clockAheadMs: number;
}

/** The servers of this host. */
export interface RegistryStore {
  /** The newest committed registry of this host. It is empty before the first commit. An unreadable store throws instead. */
  read(): Promise<Registry>;

  /**
   * Changes the registry atomically. `change` edits a private draft. It must be synchronous and free of side effects,
   * because it runs again if another writer commits first. If it throws, nothing is written. Resolves with the return
   * value of the last run.
   *
   * @throws FleetError `FLEET_STATE_BUSY` when no commit succeeded within the deadline, `FLEET_STATE_UNWRITABLE` when
   * the medium cannot be written to (full disk, read-only, I/O error). The old state is then intact.
   */
  update<T>(change: (draft: Registry) => T): Promise<T>;

  /** Replaces a registry that cannot be read, and keeps its damaged files. Absent if the medium repairs itself. */
  rebuild?(registry: Registry): Promise<void>;
}

/** Receives the id of a record that cannot be read, and the error that a read of it throws. */
export type OnUnreadable = (id: string, error: UnreadableError) => void;

/** The records of all sessions. The conversations themselves are in the homes of the servers. */
export interface SessionStore {
  read(id: string): Promise<SessionRecord | null>;

  /** Records a new session. @throws FleetError `FLEET_SESSION_EXISTS` when any user has a session with that id. */
  create(record: SessionRecord): Promise<void>;

  /**
   * Changes one record as {@link RegistryStore.update} does. The cost does not depend on the number of other records.
   *
   * @throws FleetError `FLEET_SESSION_NOT_FOUND`.
   */
  update<T>(id: string, change: (draft: SessionRecord) => T): Promise<T>;

  /** Deletes a record. Resolves with true if it existed. */
  delete(id: string): Promise<boolean>;

  /**
   * Deletes the records for which `agree` returns true, each atomically. `agree` always gets the newest state. It may run
   * more than once for a record, so it must be free of side effects. Resolves with the deleted ids.
   */
  deleteMany(ids: readonly string[], agree: (record: SessionRecord) => boolean): Promise<string[]>;

  /**
   * Counts the sessions of a user, or of all users if `owner` is null. The cost does not depend on the sessions of other
   * users. A session is not counted until its next change if the process that recorded it was killed right afterwards.
   *
   * @param limit After a process was killed while it deleted a session, the count may be too high. If it is at least
   * `limit`, the store corrects it after at most 5 s. If it is smaller, it may stay too high.
   */
  count(owner: string | null, limit: number): Promise<number>;

  /** The ids of the sessions that {@link count} counts. Reads no records, so some may not exist after a crash. */
  ids(owner: string | null): Promise<string[]>;

  /**
   * @param onUnreadable receives each record that cannot be read, and the list omits that record. Without
   * `onUnreadable`, such a record makes the call fail.
   */
  list(onUnreadable?: OnUnreadable): Promise<SessionRecord[]>;
}

export interface LeaseStore {
  /**
   * Acquires the lease on a session, or a place in the queue for it. To keep the place, the waiter must call again with
   * the same token within `placeMs`. Waiters get the lease in the order of their first calls. Once a token has the
   * lease, another call with it returns the same lease.
   */
  acquire(request: LeaseRequest): Promise<LeaseAnswer>;

  /** Gives up a place in the queue. Succeeds even if the token has no place. */
  leave(sessionId: string, token: string): Promise<void>;

  /** Makes the lease end `ttlMs` from now. @throws as {@link check}. */
  renew(sessionId: string, token: string, ttlMs: number): Promise<Lease>;

  /** Ends a lease. @throws as {@link check}. */
  release(sessionId: string, token: string): Promise<void>;

  /** The lease in force on a session, or null. Costs one read. */
  read(sessionId: string): Promise<Lease | null>;

  /**
   * Returns the lease in force.
   *
   * @throws FleetError `FLEET_LEASE_LOST` when the token does not hold a lease in force on the session.
   */
  check(sessionId: string, token: string): Promise<Lease>;

  /** The highest fence so far, or a higher number; 0 if there were no fences. */
  highestFence(): Promise<number>;

  /**
   * Makes every later fence, on any session, higher than `fence`.
   *
   * @throws FleetError `FLEET_STATE_BUSY` when `fence` comes from a clock that is too far ahead of this store's clock.
   */
  raiseFences(fence: number): Promise<void>;
}

export interface TokenStore {
  /**
   * Records a token. Once the promise resolves, every process that uses this store accepts the token.
   *
   * @throws FleetError `FLEET_INTERNAL` when the id is taken.
   */
  create(record: TokenRecord): Promise<void>;

  /** The record of a token, or null. Costs one read, however many tokens there are. */
  read(id: string): Promise<TokenRecord | null>;

  /**
   * Makes a token expire at a time (ISO 8601), unless it expires earlier anyway. Resolves with the resulting record, or
   * with null if there is no such token. Never brings a revoked token back.
   */
  endBy(id: string, at: string): Promise<TokenRecord | null>;

  /**
   * Records when a token was used (ISO 8601). A crash may lose this. Does nothing if there is no such token, and never brings
   * a revoked token back.
   */
  used(id: string, at: string): Promise<void>;

  /** For each token, the time that {@link used} recorded last, or null. */
  lastUses(ids: readonly string[]): Promise<(string | null)[]>;

  /** Revokes a token. Once the promise resolves, no process finds the token. Resolves with true if it existed. */
  delete(id: string): Promise<boolean>;

  list(): Promise<TokenRecord[]>;

  /**
   * Makes this host remember a token's expiry or revocation, so that nobody with write access to the store can undo it
   * here. This host then no longer finds a revoked token. If nobody else can write to the store, this does nothing.
   */
  noteEnd(end: TokenEnd): Promise<void>;

  /** The expiries and revocations that {@link noteEnd} has recorded on this host. */
  notedEnds(): Promise<TokenEnd[]>;

  /** Whether {@link noteEnd} has recorded on this host that this token (or other credential) was revoked. */
  isNotedRevoked(id: string): Promise<boolean>;
}

/** For each user, the host and the shared server on which new sessions are created. */
export interface PlacementStore {
  /** The placement of a user, or null. Costs one read, however many users there are. */
  read(user: string): Promise<Placement | null>;

  /**
   * Records `to` if the recorded placement is still `from`. Resolves with the placement that is recorded afterwards. Two
   * processes that place a new user get the same result. Two that replace a placement may not, in the file store.
   */
  record(user: string, from: Placement | null, to: Placement): Promise<Placement>;

  /** Succeeds even if the user has no placement. */
  delete(user: string): Promise<void>;

  list(): Promise<UserPlacement[]>;
}

/** The purges under way. During a purge, nothing new may begin for its user. */
export interface PurgeStore {
  /** The purge of a user, or null. Costs one read. */
  read(user: string): Promise<Purge | null>;

  /** Records that a purge has begun. Resolves with the record, which is the earlier one if one is under way. */
  begin(purge: Purge): Promise<Purge>;

  /** Records that a host has erased its part of the data. The call for the last host ends the purge. */
  done(user: string, host: string | null): Promise<void>;

  list(): Promise<Purge[]>;
}

/** The prompts that were sent with an idempotency key. */
export interface KeyedTurnStore {
  /** The record of a key, or null. Costs one read, however many records there are. Returns expired records, too. */
  read(user: string, key: string): Promise<KeyedTurn | null>;

  /** Resolves with false, and writes nothing, if there is already a record for the user and key. */
  create(record: KeyedTurn): Promise<boolean>;

  /** Replaces the record of the same user and key. If two processes replace it at the same time, one of them wins. */
  replace(record: KeyedTurn): Promise<void>;

  /** Succeeds even if there is no such record. */
  delete(user: string, key: string): Promise<void>;

  /** The number of the user's records. The cost does not depend on the records of other users. */
  count(user: string): Promise<number>;

  /** The records of a user, or of all users if `user` is null. Omits and reports records that cannot be read. */
  list(user: string | null, onUnreadable?: OnUnreadable): Promise<KeyedTurn[]>;
}

/** The directory of the hosts of a fleet. A host is alive while its heartbeats arrive in time, by the store's clock. */
export interface Hosts {
  readonly own: string;

  /**
   * Enters this host into the directory, or renews its entry. After a late heartbeat, the host has a new term, because
   * other hosts may have taken over its sessions. If several heartbeats are under way, the last one counts.
   *
   * @param instance The random id of this host's state folder.
   * @param ttlMs How long the host stays alive without another heartbeat, in milliseconds.
   * @throws FleetError `FLEET_HOST_TAKEN` when another instance is alive under this name.
   */
  beat(instance: string, entry: HostEntry, ttlMs: number): Promise<HostRecord>;

  /** Makes this host count as gone at once. Call it when no server runs on this host. */
  leave(instance: string): Promise<void>;

  /** Removes a host from the directory if it is gone. Resolves with true if the host was removed. */
  forget(name: string): Promise<boolean>;

  /** All hosts, including those that are gone, sorted by name. Costs one read per host. */
  list(): Promise<HostRecord[]>;

  /** The registry of another host, for reading only. */
  registryOf(name: string): Promise<Registry>;
}
