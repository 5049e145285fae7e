/**
 * The contract between the fleet and the adapters that keep its state. `file/` is the embedded default. `redis/` serves
 * many hosts. Every adapter must pass `test/contract/store.contract.ts`.
 *
 * Every adapter guarantees:
 * - An acknowledged write (its promise has resolved) is stored exactly once, no matter which process dies.
 * - A write that was not acknowledged is stored completely or not at all.
 * - Two writers never undo each other's changes. `update…` runs `change` on the newest state, and runs it again if
 *   another writer commits first.
 */
export interface Store {
  readonly kind: "file" | "redis";

  /**
   * The hosts that share this store, or null if it serves a single host. Each host has its own registry. All hosts
   * share sessions, leases, tokens and placements.
   */
  readonly hosts: Hosts | null;

  /**
   * The newest committed registry of this host. An empty store returns an empty registry. An unreadable store throws
   * instead.
   */
  readRegistry(): Promise<Registry>;

  /**
   * Changes the registry atomically. `change` gets a private draft and may edit it in place. It must be synchronous and
   * free of side effects, because it runs again if another writer commits first. If it throws, the update is aborted
   * and nothing is written. An unchanged draft is not written either, unless writing it repairs damage. Resolves with
   * the return value of the last run.
   *
   * @throws FleetError `FLEET_STATE_BUSY` when no commit succeeded within the deadline, `FLEET_STATE_UNWRITABLE` when
   * the medium cannot be written (full disk, read-only, I/O error). The old state is then intact.
   */
  updateRegistry<T>(change: (draft: Registry) => T): Promise<T>;

  readSession(id: string): Promise<SessionRecord | null>;

  /**
   * Adds a record.
   *
   * @throws FleetError `FLEET_SESSION_EXISTS` when there is a record with that id, whoever owns it.
   */
  createSession(record: SessionRecord): Promise<void>;

  /**
   * Changes one record atomically, under the same rules as {@link updateRegistry}. The cost does not depend on the
   * number of other records.
   *
   * @throws FleetError `FLEET_SESSION_NOT_FOUND`.
   */
  updateSession<T>(id: string, change: (draft: SessionRecord) => T): Promise<T>;

  /** Deletes a record. Resolves with whether there was one. */
  deleteSession(id: string): Promise<boolean>;

  /**
   * Deletes those of the records for which `agree` returns true, each atomically. `agree` gets the newest state,
   * including every change that was committed before the deletion. A later change finds no record. `agree` may run more
   * than once and must be free of side effects. Resolves with the ids that this call deleted.
   */
  deleteSessions(ids: readonly string[], agree: (record: SessionRecord) => boolean): Promise<string[]>;

  /**
   * Counts the sessions of a user, or of all users if `owner` is null. The cost depends only on the user's own
   * sessions. A session that an earlier version recorded is counted after its next change.
   *
   * @param limit The count is exact from this number on. Below it, the count may be too high after a crash.
   */
  countSessions(owner: string | null, limit: number): Promise<number>;

  /**
   * All records, in no particular order. A record that is created or deleted during the call may be missing or
   * included.
   */
  listSessions(): Promise<SessionRecord[]>;

  /**
   * Takes the lease on a session, or a place in the queue for it. Another call with the same token keeps the place, and
   * returns the same answer once the lease is granted. Waiters are served in the order of their first call. A waiter
   * that does not call again within `placeMs` loses its place.
   */
  acquireLease(request: LeaseRequest): Promise<LeaseAnswer>;

  /** Gives up a place in the queue. Succeeds if there is none. */
  leaveLeaseQueue(sessionId: string, token: string): Promise<void>;

  /**
   * Lets the lease end `ttlMs` from now.
   *
   * @throws FleetError `FLEET_LEASE_LOST` when the token's lease has ended or never existed.
   */
  renewLease(sessionId: string, token: string, ttlMs: number): Promise<Lease>;

  /**
   * Ends a lease.
   *
   * @throws FleetError `FLEET_LEASE_LOST` when the token's lease has ended or never existed.
   */
  releaseLease(sessionId: string, token: string): Promise<void>;

  /** The lease in force on a session, or null. Costs one read. */
  readLease(sessionId: string): Promise<Lease | null>;

  /**
   * Returns the lease in force, if it belongs to the token.
   *
   * @throws FleetError `FLEET_LEASE_LOST` when it does not.
   */
  checkLease(sessionId: string, token: string): Promise<Lease>;

  /**
   * Records a token of the front door. Once the promise resolves, every process that uses this store accepts the token.
   *
   * @throws FleetError `FLEET_INTERNAL` when the id is taken.
   */
  createToken(record: TokenRecord): Promise<void>;

  /** The record of a token, or null. Costs one read, however many tokens there are. */
  readToken(id: string): Promise<TokenRecord | null>;

  /** Revokes a token. Once the promise resolves, no reader finds it. Resolves with whether there was one. */
  deleteToken(id: string): Promise<boolean>;

  /**
   * All tokens, in no particular order. A token that is issued or revoked during the call may be missing or included.
   */
  listTokens(): Promise<TokenRecord[]>;

  /** The placement of a user, or null. Costs one read, however many users there are. */
  readPlacement(user: string): Promise<Placement | null>;

  /**
   * Places a user, if the recorded placement is still `from`. Resolves with the placement that is recorded afterwards.
   * If two processes place a user at the same time, both get the same result.
   */
  recordPlacement(user: string, from: Placement | null, to: Placement): Promise<Placement>;

  /**
   * The placements of all users, in no particular order. A user who is placed during the call may be missing or
   * included.
   */
  listPlacements(): Promise<UserPlacement[]>;

  /**
   * The clock for the expiry of tokens, in milliseconds since the epoch. All processes that use this store share it,
   * whatever the clocks of their machines show.
   */
  now(): Promise<number>;

  /** A number that no fence given out so far exceeds; 0 if there was none. Another store can continue from it. */
  highestFence(): Promise<number>;

  /**
   * Makes every later fence, on any session, higher than `fence`.
   *
   * @throws FleetError `FLEET_STATE_BUSY` when the store cannot do that soon, because the clock behind those fences is
   * ahead of this store's clock.
   */
  raiseFences(fence: number): Promise<void>;

  /** Removes everything that killed writers left behind. Every write already does this in the place where it writes. */
  sweep(): Promise<void>;

  /** Returns the problems that reads have met, and forgets them. Each one is already repaired or worked around. */
  takeWarnings(): string[];

  /** Finishes the writes under way, then releases everything that the adapter holds open. */
  close(): Promise<void>;
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

/** The facts that a host publishes about itself. */
export interface HostEntry {
  /** `host:port` at which other hosts reach its front door; null if it has none. */
  door: string | null;
  /** `draining`: the fleet places no more users there. */
  state: "serving" | "draining";
  /** When its `serve` started (ISO 8601, UTC). */
  startedAt: string;
  /** The folder for session state that all hosts mount; null if the host uses its own disk. */
  storage: string | null;
  /** The number that the host wrote into that folder, so that others can verify that they mount the same folder. */
  beacon?: string | null;
}

export interface HostRecord extends HostEntry {
  name: string;
  instance: string;
  /** Grows each time the host enters the directory. Other hosts may have taken what it had in an earlier term. */
  term: number;
  /** Whether its last heartbeat has expired. */
  gone: boolean;
  /** How long the host still counts as alive, in milliseconds; 0 if it is gone. */
  remainingMs: number;
}

/** The host and the shared server that a user's sessions are created on. */
export interface Placement {
  /** Absent if the store serves a single host. */
  host?: string;
  /** The shared server on that host; null if the user has their own server. */
  serverId: string | null;
}

export interface UserPlacement {
  user: string;
  placement: Placement;
}

/**
 * The version of the recorded shapes below. The fleet refuses a store that a newer version wrote, and does not touch
 * it.
 */
export const SCHEMA = 1;

export interface Registry {
  /** By server id. */
  servers: Record<string, ServerRecord>;
  /** How many users were placed by `round-robin` so far. Absent: none. */
  placed?: number;
  /** The supervisors of the hosts. An entry whose process has died counts as absent. */
  supervisors?: SupervisorRecord[];
  /**
   * Since when the pool admits nothing new, because of the command `drain` (ISO 8601, UTC). Absent: the pool is open.
   */
  drainedAt?: string;
}

/** A `serve` process. */
export interface SupervisorRecord {
  process: ProcessIdentity;
  state: "serving" | "draining";
  /** ISO 8601, UTC. */
  startedAt: string;
  /** `host:port` of its metrics and health endpoints; null if it has none. */
  metrics: string | null;
  /** `host:port` of its front door; absent or null if it has none. */
  door?: string | null;
}

export type Isolation = "per-user" | "shared";
export type ServerState = "starting" | "ready" | "unhealthy" | "draining" | "stopped" | "failed";

/**
 * Identifies a process beyond its PID. A PID is reused, but a start time within one boot and one PID namespace is not.
 * Sources: `/proc/sys/kernel/random/boot_id`, `/proc/self/ns/pid`, field 22 of `/proc/<pid>/stat` (proc(5)).
 */
export interface ProcessIdentity {
  host: string;
  bootId: string;
  pidNamespace: string;
  pid: number;
  /** Clock ticks after boot at which the process started (on macOS the text of `ps -o lstart=`). */
  startTicks: string;
}

/** A process, and the operation that it made the claim for. */
export interface Claim extends ProcessIdentity {
  /** Absent in records of earlier versions. */
  move?: string;
}

/** Where a GitHub token comes from. The token itself is never recorded. */
export type TokenSource =
  | { from: "env"; name: string }
  | { from: "file"; path: string }
  | { from: "command"; command: string }
  /** A program that uses the library passed it in memory. Nobody else can find it again to restart the server. */
  | { from: "caller" };

export interface ServerRecord {
  id: string;
  /** The owner, or null for a shared server. */
  user: string | null;
  isolation: Isolation;
  state: ServerState;
  /** ISO 8601, UTC. */
  createdAt: string;
  /** When the running process was launched; null when there is none. */
  startedAt: string | null;
  /** The address it listens on. */
  address: string;
  /** Reserved for this server alone while it is recorded; null once it is released. */
  port: number | null;
  /** The port that it listened on last. `restart` uses it again if it is free. */
  lastPort: number | null;
  /** Names one launch; the process carries it in its environment (`COPILOTFLEET_LAUNCH_ID`). */
  launchId: string | null;
  process: ProcessIdentity | null;
  /**
   * The size of its log in bytes when the launch began. Earlier launches wrote everything before that. Absent: not
   * known.
   */
  logStart?: number;
  /**
   * The process that moves this server to its next state. If that process died before it finished, anyone may clean up.
   */
  claim: Claim | null;
  /** Absolute path of its `COPILOT_HOME`. */
  home: string;
  /** Absolute path of its working folder. */
  cwd: string;
  token: TokenSource | null;
  runtimePath: string;
  /** The version that the server reported; null before its first answer. */
  version: string | null;
  /** Why it is `failed` or `unhealthy`; null in other states. */
  failure: string | null;
  /**
   * Whether the server should run. `serve` starts servers that should run and do not. Absent in records of earlier
   * versions and until the server has run once.
   */
  desired?: "running" | "stopped";
  /**
   * How many times in a row it exited by itself or failed to start, without a healthy period in between. Absent: never.
   */
  crashes?: number;
  /** The process that will take over from this one, on the same home. */
  replacement?: Replacement | null;
}

/** A process that was started beside the running one. Once the running one is drained, this one becomes the server. */
export interface Replacement {
  launchId: string;
  port: number;
  /** Null until the process has answered. */
  process: ProcessIdentity | null;
  /** The process that does the replacement. If it died before it finished, the replacement is ended or takes over. */
  claim: Claim;
  /** When it was launched (ISO 8601, UTC). */
  startedAt: string;
  /** As in {@link ServerRecord}. */
  logStart?: number;
}

/** A time-bounded right to use one session. It outlives the process that took it. */
export interface Lease {
  sessionId: string;
  /** The user who holds it. */
  holder: string;
  /**
   * Grows with each lease on a session of this id, even if the session was deleted and created again in between. The
   * fleet refuses a holder that presents an older fence.
   */
  fence: number;
  /**
   * ISO 8601, UTC, for people. The fleet decides by `remainingMs`, which does not depend on jumps of the wall clock.
   */
  acquiredAt: string;
  expiresAt: string;
  remainingMs: number;
  ttlMs: number;
  /** The reason for taking it from the previous holder; null if nobody held it. */
  stealReason: string | null;
  /** No process holds it. `lock` took it without a command to run, and it lasts until `unlock` or until it expires. */
  detached?: true;
}

export interface LeaseRequest {
  sessionId: string;
  holder: string;
  /**
   * A secret that the caller made up. It names this request and, once granted, the lease. The store keeps only its
   * hash.
   */
  token: string;
  ttlMs: number;
  /** How long the place in the queue lasts without another call, in milliseconds. */
  placeMs: number;
  /** Takes the lease at once, regardless of its holder and of other waiters. */
  steal?: { reason: string };
  /** As in {@link Lease}. */
  detached?: true;
}

export type LeaseAnswer =
  | { granted: true; lease: Lease }
  /** `lease` is the lease in force, if any. `ahead` is the number of waiters that come first. */
  | { granted: false; lease: Lease | null; ahead: number };

/** The record of a token that a client presents at the front door. It never contains the token itself. */
export interface TokenRecord {
  /**
   * `host`: the token identifies another host of the fleet and is valid for one connection. Absent: it identifies a
   * user.
   */
  role?: "host";
  /** For a host's token: the only host whose front door accepts it. */
  door?: string;
  /** The fleet made the token for one connection and deletes it with the connection. An expired one is a left-over. */
  passing?: true;
  /**
   * For a passing token: the user's turns in this session run under the lease with this fence. The process that
   * recorded the token has proved to the store that it has the lease's token.
   */
  lease?: { sessionId: string; fence: number };
  /** 1 to 64 lower-case letters and digits. The id is part of the token, so that looking up a token takes one read. */
  id: string;
  /**
   * The user that the token identifies. For a host's token: `host:` and the host's name, which is not a valid user id.
   */
  user: string;
  /** SHA-256 of the whole token, in hex. A plain hash is safe, because a token has 256 random bits. */
  sha256: string;
  /** ISO 8601, UTC. */
  createdAt: string;
  /** When the token expires; null: it is valid until it is revoked. */
  expiresAt: string | null;
}

/** A process that uses a session, and the host on which it runs. */
export interface SessionUser extends ProcessIdentity {
  /** Absent if the store serves a single host. */
  at?: string;
}

export type SessionState = "active" | "idle" | "draining" | "gone";

export interface SessionRecord {
  id: string;
  owner: string;
  purpose: string | null;
  kind: "private" | "collaborative";
  members: string[];
  persistence: "persistent" | "ephemeral";
  /** The server that has the session, or had it last. Only this server may open it, see `Sessions`. */
  serverId: string;
  /**
   * The host of that server, and the host's term when it took the session. Absent if the store serves a single host.
   */
  host?: string;
  term?: number;
  /** The host has unloaded the session and no longer uses it. Any host that shares its storage may take it. */
  released?: boolean;
  /** Where the state must be fetched from, and by which process. Until that is done, the state is not on `host`. */
  from?: { host: string; group: string; mark: string; taker: Claim | null };
  model: string | null;
  /** ISO 8601, UTC. */
  createdAt: string;
  lastUsedAt: string;
  /** Milliseconds after the last use until gc may delete the session; null: the fleet's configuration decides. */
  ttlMs: number | null;
  /** The process that uses an ephemeral session now. When it exits, the session is due for deletion. */
  usedBy: SessionUser | null;
  /** The number of turns that went through the fleet. A session with at least one must have a history on disk. */
  turns: number;
}
