import { FleetError, quote } from "../base/errors.js";
import type { HostEntry, HostRecord, Placement, Purge, UserPlacement } from "../base/host.js";
import type { Registry } from "../base/server.js";
import type { KeyedTurn, Lease, LeaseAnswer, LeaseRequest, SessionRecord } from "../base/session.js";
import { system } from "../base/system/system.js";
import type { TokenEnd, TokenRecord } from "../base/token.js";
import type {
  LedgerLine,
  OwnLimits,
  Slot,
  SlotAnswer,
  SlotRequest,
  SlotsUsed,
  UsagePart,
  UsageQuery,
  UserLimitRecord,
} from "../base/usage.js";
import type { UnreadableError } from "./failures.js";

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

  /** Removes what killed writers and ended records have left. */
  sweep(): Promise<void>;

  /** Overwrites deleted records everywhere on this host, and deletes damaged files that contain one of the texts. */
  forgetOlder(texts: readonly string[]): Promise<void>;

  /** Replaces this host's copy of the records, from which {@link repair} restores them. */
  copy(): Promise<void>;

  /** Looks for damage in the files of this host's state folder. */
  damage(): Promise<{ file: string; detail: string }[]>;

  /** Replaces damaged files by their last copies. A file without a copy begins empty. */
  repair(): Promise<RepairedFile[]>;

  /** Returns the problems that reads have found since the last call. They did not make the reads fail. */
  takeWarnings(): string[];

  /** Waits for the writes under way, and then closes everything that the adapter has open. */
  close(): Promise<void>;
}

export interface RepairedFile {
  file: string;
  /** The new path of the damaged file. */
  keptAs: string;
  /** When the copy was made that is now in its place. Null: there was none. */
  copiedAt: Date | null;
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
   * users.
   */
  count(owner: string | null): Promise<number>;

  /** The ids of the sessions that {@link count} counts. Reads no records. */
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
   * @throws FleetError `FLEET_SUPERVISOR_RUNNING` when another instance is alive under this name.
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

type PurgeStores = Pick<Store, "purges"> & Partial<Pick<Store, "hosts">>;

/** The purges that a live host still has to finish. Leaves out those that only wait for hosts that may come back. */
export async function purgesUnderWay(store: PurgeStores): Promise<Purge[]> {
  const purges = await store.purges.list();
  return purges.length === 0 ? [] : purges.filter(await underWay(store));
}

export async function isBeingErased(store: PurgeStores, user: string): Promise<boolean> {
  const purge = await store.purges.read(user);
  return purge !== null && (await underWay(store))(purge);
}

async function underWay({ hosts }: PurgeStores): Promise<(purge: Purge) => boolean> {
  const live = ((await hosts?.list()) ?? []).flatMap(({ name, gone }) => (gone ? [] : [name]));
  return ({ pending, partlyDone }) =>
    partlyDone !== true || pending.some((host) => host === null || live.includes(host));
}

/** Call this before anything begins for a user. @throws FleetError `FLEET_PURGE_UNDER_WAY` during the user's purge */
export async function refuseErased(store: PurgeStores, user: string): Promise<void> {
  if (!(await isBeingErased(store, user))) return;
  throw new FleetError("FLEET_PURGE_UNDER_WAY", `The data of user ${quote(user)} is being erased.`, {
    suggestions: [`copilotfleet user purge ${user} # finishes it, and shows what remains`],
  });
}

/** Removes the prototype of `servers`, because a server id may be `__proto__` or `constructor`. */
export function withoutPrototype(registry: Registry): Registry {
  return { ...registry, servers: Object.assign(Object.create(null), registry.servers) };
}

/* A holder is a text that identifies the process that has a slot: its boot, PID namespace, PID and start time. */

let own: string | undefined;

/** Identifies the current boot of this machine by 8 letters and digits. */
export function bootName(): string {
  return system()
    .clock.bootId()
    .replace(/[^a-z0-9]/gi, "")
    .toLowerCase()
    .slice(0, 8)
    .padEnd(8, "0");
}

export function ownHolder(): string {
  own ??= holderOf(process.pid, system().processes.find(process.pid)?.started ?? "");
  return own;
}

function holderOf(pid: number, started: string): string {
  const namespace = system().processes.namespace().replace(/\D/g, "");
  return [bootName(), namespace, pid, started.replace(/\W/g, "_")].join(".");
}

/** Whether the holder has ended. Null if this process cannot check that, because the boot or PID namespace differs. */
export function hasGone(holder: string): boolean | null {
  const [boot, namespace, pid = ""] = holder.split(".");
  const [ownBoot, ownNamespace] = ownHolder().split(".");
  if (boot !== ownBoot || namespace !== ownNamespace || !/^\d+$/.test(pid)) return null;
  const found = system().processes.find(Number(pid));
  return found === null || holderOf(found.pid, found.started) !== holder;
}

/** How long a call of `isFirst` is remembered, in milliseconds. Longer than a month, the longest period. */
export const NEAR_MS = 32 * 24 * 3_600_000;

/** The limits that `limit set` gives to individual users, suspensions, the users' groups, and the slots that users have. */
export interface LimitStore {
  /** The user's own limits, suspension and groups; null if there are none. Another host may see a change up to a second late. */
  read(user: string): Promise<UserLimitRecord | null>;

  /** The records of all users. Costs one read per record. */
  list(): Promise<UserLimitRecord[]>;

  /** Changes the user's own limits and suspension. `change` must be free of side effects, because it may run again. */
  set(user: string, change: (own: OwnLimits) => OwnLimits): Promise<void>;

  /** Removes the user's own limits, but not a suspension. Resolves with true if there were any. */
  clear(user: string): Promise<boolean>;

  /** Replaces the user's groups. */
  noteGroups(user: string, groups: readonly string[]): Promise<void>;

  /**
   * Takes a slot if the limits in the request allow it. All processes on all hosts together never exceed these limits.
   * A slot ends when it is given back, or some time after its process has ended.
   */
  take(request: SlotRequest): Promise<SlotAnswer>;

  /**
   * Gives a slot back. If the medium fails, resolves anyway, and the slot ends later.
   *
   * @param hasBegun whether the turn began, so that it still counts for the turns per minute
   */
  giveBack(slot: Slot, hasBegun: boolean): Promise<void>;

  /** How many slots the user has, and how many turns of the user began in the last minute. */
  used(user: string): Promise<SlotsUsed>;

  /**
   * True only for the first call, among all hosts, about this limit and period, and only if there was no call about a
   * later period. So only one process records that the user is near the limit.
   *
   * @param name the name of the limit
   * @param from the start of the period
   */
  isFirst(user: string, name: string, from: number): Promise<boolean>;

  /** Deletes everything about the user. */
  forget(user: string): Promise<void>;
}

/**
 * The names to replace, each with its pseudonym. Users and sessions have separate maps, because a session may have the
 * same name as another user, and that user's name must stay.
 */
export interface Renaming {
  users: ReadonlyMap<string, string>;
  sessions: ReadonlyMap<string, string>;
}

/**
 * The ledger. Each line is counted once. Lines are written to this host's disk first, even if the store serves many
 * hosts, so that neither the end of a process nor an outage of the store loses a line.
 */
export interface UsageStore {
  /**
   * Appends lines. Once the call returns, they survive the end of this process.
   *
   * @returns how many of the lines were appended. On a full disk, these may be only the first few.
   * @throws FleetError `FLEET_STATE_UNWRITABLE` if no line was appended
   */
  append(lines: readonly LedgerLine[]): number;

  /**
   * Resolves when this host's lines count on all hosts. May also add lines up, so that the next query is fast. Also
   * resolves if the store does not answer. Never rejects.
   */
  settled(): Promise<void>;

  /** Adds up the lines in the query's period. Each part of the result has one user, one model and one key (`by`). */
  read(query: UsageQuery): Promise<UsagePart[]>;

  /**
   * The input and output tokens of a user, on all hosts, since the start of a day (UTC).
   * @param from a time on this day, in milliseconds since the epoch, at most 31 days ago
   */
  tokensSince(user: string, from: number): Promise<number>;

  /**
   * Replaces the names of a user and of the user's sessions in all lines. If this is interrupted, the same call
   * finishes it. In a fleet of several hosts, call it on each host.
   */
  rename(names: Renaming): Promise<void>;

  /** Deletes lines that are older than `keepMs` milliseconds, and files that killed processes left. */
  upkeep(keepMs: number): Promise<void>;
}
