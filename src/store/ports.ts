import type { HostEntry, HostRecord } from "../model/host.js";
import type { Lease, LeaseAnswer, LeaseRequest } from "../model/lease.js";
import type { Placement, UserPlacement } from "../model/placement.js";
import type { Registry } from "../model/registry.js";
import type { SessionRecord } from "../model/session.js";
import type { TokenRecord } from "../model/token.js";

/**
 * The contract between the fleet and the adapters that keep its state. `file/` is the embedded default. `redis/` serves
 * many hosts. Every adapter must pass `test/contract/store.contract.ts`.
 *
 * Every adapter guarantees:
 * - An acknowledged write (its promise has resolved) is stored exactly once, no matter which process dies.
 * - A write that was not acknowledged is stored completely or not at all.
 * - Two writers never undo each other's changes. `update` runs `change` on the newest state, and runs it again if
 *   another writer commits first.
 *
 * The lists of sessions, tokens and placements are in no particular order. A record that is created or deleted during the
 * call may be missing or included.
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

  /**
   * The clock for the expiry of tokens, in milliseconds since the epoch. All processes that use this store share it,
   * whatever the clocks of their machines show.
   */
  now(): Promise<number>;

  /** Removes everything that killed writers left behind. Every write already does this in the place where it writes. */
  sweep(): Promise<void>;

  /** Returns the problems that reads have met, and forgets them. Each one is already repaired or worked around. */
  takeWarnings(): string[];

  /** Finishes the writes under way, then releases everything that the adapter holds open. */
  close(): Promise<void>;
}

/** The servers of this host. */
export interface RegistryStore {
  /** The newest committed registry of this host, or an empty one. An unreadable store throws instead. */
  read(): Promise<Registry>;

  /**
   * Changes the registry atomically. `change` gets a private draft and may edit it in place. It must be synchronous and
   * free of side effects, because it runs again if another writer commits first. If it throws, the update is aborted
   * and nothing is written. An unchanged draft is not written either, unless writing it repairs damage. Resolves with
   * the return value of the last run.
   *
   * @throws FleetError `FLEET_STATE_BUSY` when no commit succeeded within the deadline, `FLEET_STATE_UNWRITABLE` when
   * the medium cannot be written (full disk, read-only, I/O error). The old state is then intact.
   */
  update<T>(change: (draft: Registry) => T): Promise<T>;
}

/** The records of all sessions. The conversations themselves are in the homes of the servers. */
export interface SessionStore {
  read(id: string): Promise<SessionRecord | null>;

  /** @throws FleetError `FLEET_SESSION_EXISTS` when there is a record with that id, whoever owns it. */
  create(record: SessionRecord): Promise<void>;

  /**
   * Changes one record atomically, under the same rules as {@link RegistryStore.update}. The cost does not depend on the
   * number of other records.
   *
   * @throws FleetError `FLEET_SESSION_NOT_FOUND`.
   */
  update<T>(id: string, change: (draft: SessionRecord) => T): Promise<T>;

  /** Deletes a record. Resolves with whether there was one. */
  delete(id: string): Promise<boolean>;

  /**
   * Deletes those of the records for which `agree` returns true, each atomically. `agree` gets the newest state,
   * including every change that was committed before the deletion. A later change finds no record. `agree` may run more
   * than once and must be free of side effects. Resolves with the ids that this call deleted.
   */
  deleteMany(ids: readonly string[], agree: (record: SessionRecord) => boolean): Promise<string[]>;

  /**
   * Counts the sessions of a user, or of all users if `owner` is null. The cost depends only on the user's own
   * sessions. A session that an earlier version recorded is counted after its next change.
   *
   * @param limit The count is exact from this number on. Below it, the count may be too high after a crash.
   */
  count(owner: string | null, limit: number): Promise<number>;

  list(): Promise<SessionRecord[]>;
}

export interface LeaseStore {
  /**
   * Takes the lease on a session, or a place in the queue for it. Another call with the same token keeps the place, and
   * returns the same answer once the lease is granted. Waiters are served in the order of their first call. A waiter
   * that does not call again within `placeMs` loses its place.
   */
  acquire(request: LeaseRequest): Promise<LeaseAnswer>;

  /** Gives up a place in the queue. Succeeds if there is none. */
  leave(sessionId: string, token: string): Promise<void>;

  /** Lets the lease end `ttlMs` from now. @throws as {@link check}. */
  renew(sessionId: string, token: string, ttlMs: number): Promise<Lease>;

  /** Ends a lease. @throws as {@link check}. */
  release(sessionId: string, token: string): Promise<void>;

  /** The lease in force on a session, or null. Costs one read. */
  read(sessionId: string): Promise<Lease | null>;

  /**
   * Returns the lease in force.
   *
   * @throws FleetError `FLEET_LEASE_LOST` when it does not belong to the token, has ended or never existed.
   */
  check(sessionId: string, token: string): Promise<Lease>;

  /** An upper bound of all fences given out so far; 0 if there were none. Another store can continue from it. */
  highestFence(): Promise<number>;

  /**
   * Makes every later fence, on any session, higher than `fence`.
   *
   * @throws FleetError `FLEET_STATE_BUSY` when the store cannot do that soon, because the clock behind those fences is
   * ahead of this store's clock.
   */
  raiseFences(fence: number): Promise<void>;
}

/** The tokens that clients present at the front door. */
export interface TokenStore {
  /**
   * Records a token of the front door. Once the promise resolves, every process that uses this store accepts the token.
   *
   * @throws FleetError `FLEET_INTERNAL` when the id is taken.
   */
  create(record: TokenRecord): Promise<void>;

  /** The record of a token, or null. Costs one read, however many tokens there are. */
  read(id: string): Promise<TokenRecord | null>;

  /** Revokes a token. Once the promise resolves, no reader finds it. Resolves with whether there was one. */
  delete(id: string): Promise<boolean>;

  list(): Promise<TokenRecord[]>;
}

/** Where each user's sessions are created. */
export interface PlacementStore {
  /** The placement of a user, or null. Costs one read, however many users there are. */
  read(user: string): Promise<Placement | null>;

  /**
   * Places a user, if the recorded placement is still `from`. Resolves with the placement that is recorded afterwards.
   * If two processes place a user at the same time, both get the same result.
   */
  record(user: string, from: Placement | null, to: Placement): Promise<Placement>;

  list(): Promise<UserPlacement[]>;
}

/** The directory of the hosts of a fleet. A host is alive while its heartbeats arrive in time, by the store's clock. */
export interface Hosts {
  readonly own: string;

  /**
   * Enters this host into the directory, or renews its entry. The term stays the same as long as every heartbeat
   * arrives in time. After a late one the host gets a new term, because other hosts may have taken over its sessions.
   * It is safe to repeat a heartbeat. If several are under way, the one that was requested last counts.
   *
   * @param instance The random id of this host's state folder.
   * @param ttlMs How long the host stays alive without another heartbeat, in milliseconds.
   * @throws FleetError `FLEET_HOST_TAKEN` when another instance is alive under this name.
   */
  beat(instance: string, entry: HostEntry, ttlMs: number): Promise<HostRecord>;

  /** Makes this host count as gone at once. Call it when the host has nothing left that others must wait for. */
  leave(instance: string): Promise<void>;

  /** Removes a host from the directory if it is gone. Resolves with whether it removed one. */
  forget(name: string): Promise<boolean>;

  /** All hosts, including those that are gone, sorted by name. Costs one read per host. */
  list(): Promise<HostRecord[]>;

  /** The registry of another host, for reading only. */
  registryOf(name: string): Promise<Registry>;
}
