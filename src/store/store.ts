/**
 * The contract between the fleet and whatever keeps its state. `file/` is the embedded default, `redis/` is for many
 * hosts; every adapter has to pass `test/contract/store.contract.ts`.
 *
 * Guarantees every adapter gives:
 * - A write that was acknowledged (its promise resolved) is there exactly once, also after the death of any process.
 * - A write that was not acknowledged is there whole or not at all.
 * - Two writers never undo each other: `update…` runs `change` on the newest state, again if another writer was first.
 */
export interface Store {
  readonly kind: "file" | "redis";

  /**
   * The hosts that share this store, where several may: each has a registry of its own, while sessions, leases, tokens
   * and placements are everybody's. Null: one host has all of it.
   */
  readonly hosts: Hosts | null;

  /** The newest committed registry of this host. An empty store gives an empty registry; an unreadable one never does. */
  readRegistry(): Promise<Registry>;

  /**
   * Changes the registry atomically. `change` gets a private draft and may edit it in place; it must be synchronous
   * and free of effects, since it runs again when another writer committed first. What it throws aborts the update:
   * nothing is written. A draft left as it was is not written either, unless that repairs damage. Resolves with what the last run returned.
   *
   * @throws FleetError `FLEET_STATE_BUSY` when no commit succeeded within the deadline, `FLEET_STATE_UNWRITABLE` when the
   * medium refuses (full disk, read-only, I/O error); the old state is then intact.
   */
  updateRegistry<T>(change: (draft: Registry) => T): Promise<T>;

  /** One session's record, or null. */
  readSession(id: string): Promise<SessionRecord | null>;

  /** Adds a record. @throws FleetError `FLEET_SESSION_EXISTS` if there is one under that id, whoever owns it. */
  createSession(record: SessionRecord): Promise<void>;

  /**
   * Changes one record atomically, under the same rules as {@link updateRegistry}. Costs the same however many other
   * records there are. @throws FleetError `FLEET_SESSION_NOT_FOUND`.
   */
  updateSession<T>(id: string, change: (draft: SessionRecord) => T): Promise<T>;

  /** Removes a record; resolves with whether there was one. */
  deleteSession(id: string): Promise<boolean>;

  /**
   * Removes those of the records that `agree` says yes to, each atomically: it is asked about the newest state, a change
   * that came before is in it, and one that comes after finds no record. It may be asked more than once, and must be free
   * of effects. Resolves with the ids of those that this very call removed.
   */
  deleteSessions(ids: readonly string[], agree: (record: SessionRecord) => boolean): Promise<string[]>;

  /**
   * How many sessions a user has; null: all users together. Costs no more than the user's own sessions, however many others
   * there are. Sessions that an earlier version recorded count from their next change on.
   *
   * @param limit from which number on it has to be exact; below, it may be too high after a crash
   */
  countSessions(owner: string | null, limit: number): Promise<number>;

  /** All records, in no particular order. A record that is created or deleted meanwhile may or may not be there. */
  listSessions(): Promise<SessionRecord[]>;

  /**
   * Takes the lease on a session, or a place in the queue for it; asking again (same token) keeps the place and, once it
   * is granted, gives the same answer. Waiters are served in the order in which they first asked; a place is lost when
   * its waiter did not ask for `placeMs`.
   */
  acquireLease(request: LeaseRequest): Promise<LeaseAnswer>;

  /** Gives up a place in the queue. Having none is success. */
  leaveLeaseQueue(sessionId: string, token: string): Promise<void>;

  /** Puts the end of a lease `ttlMs` from now. @throws FleetError `FLEET_LEASE_LOST` when the token's lease is over. */
  renewLease(sessionId: string, token: string, ttlMs: number): Promise<Lease>;

  /** Ends a lease. @throws FleetError `FLEET_LEASE_LOST` when the token's lease is over, or never was. */
  releaseLease(sessionId: string, token: string): Promise<void>;

  /** The lease in force on a session, or null. Costs one read. */
  readLease(sessionId: string): Promise<Lease | null>;

  /** The lease if it is in force and the token's. @throws FleetError `FLEET_LEASE_LOST`. */
  checkLease(sessionId: string, token: string): Promise<Lease>;

  /**
   * Records a token of the front door. When it resolves the token is good in every process that uses this store.
   * @throws FleetError `FLEET_INTERNAL` if the id is taken.
   */
  createToken(record: TokenRecord): Promise<void>;

  /** The record of a token, or null. Costs one read, however many tokens there are. */
  readToken(id: string): Promise<TokenRecord | null>;

  /** Revokes a token: when it resolves no reader finds it any more. Resolves with whether there was one. */
  deleteToken(id: string): Promise<boolean>;

  /** All tokens, in no particular order. One that is issued or revoked meanwhile may or may not be there. */
  listTokens(): Promise<TokenRecord[]>;

  /** Where a user was placed, or null. Costs one read, however many users there are. */
  readPlacement(user: string): Promise<Placement | null>;

  /**
   * Records where a user goes from now on, if `from` is what is recorded still. Resolves with what is recorded then: of two
   * that place a user at once, both get the same.
   */
  recordPlacement(user: string, from: Placement | null, to: Placement): Promise<Placement>;

  /** Where every user was placed, in no particular order. One that is placed meanwhile may or may not be there. */
  listPlacements(): Promise<UserPlacement[]>;

  /**
   * The time by which tokens end, in milliseconds since the epoch: one clock for all that use this store, whatever those of
   * their machines say.
   */
  now(): Promise<number>;

  /** No fence that was given out so far is higher; 0 if there was none. For another store to go on from. */
  highestFence(): Promise<number>;

  /**
   * Makes every later fence, on whichever session, higher than `fence`. @throws FleetError `FLEET_STATE_BUSY` when that
   * cannot be had at once: the fences came from a clock that is ahead of this one.
   */
  raiseFences(fence: number): Promise<void>;

  /** Removes what writers that were killed left behind. Every write does so where it writes; this does it everywhere. */
  sweep(): Promise<void>;

  /** Problems met while reading, each repaired or worked around already, for a command to show. Emptied by the call. */
  takeWarnings(): string[];

  /** Releases what the adapter holds open. Writes under way are finished first. */
  close(): Promise<void>;
}

/** The directory of the hosts of a fleet. Each is there by its heartbeat, whose time is that of the store. */
export interface Hosts {
  /** The name of this host. */
  readonly own: string;

  /**
   * Enters this host, or says that it is still there. Its term stays the same for as long as no heartbeat came too late;
   * after that it is a new one, since others may have taken over meanwhile. Safe to repeat. Of several at a time the last one that
   * was asked for counts.
   *
   * @param instance who beats: a random id of this host's state folder
   * @param ttlMs how long it counts as there without another heartbeat, in milliseconds
   * @throws FleetError `FLEET_HOST_TAKEN` when another instance is there under this name.
   */
  beat(instance: string, entry: HostEntry, ttlMs: number): Promise<HostRecord>;

  /** The host has nothing left that others must wait for: it counts as gone at once. */
  leave(instance: string): Promise<void>;

  /** Takes a host that is gone off the directory. Resolves with whether there was one. One that is there stays. */
  forget(name: string): Promise<boolean>;

  /** All hosts, also those that are gone, by name. Costs one read for each. */
  list(): Promise<HostRecord[]>;

  /** The registry of another host: to look at. */
  registryOf(name: string): Promise<Registry>;
}

/** What a host says of itself. */
export interface HostEntry {
  /** `host:port` at which other hosts reach its front door; null: it has none. */
  door: string | null;
  /** `draining`: nobody is placed there any more. */
  state: "serving" | "draining";
  /** When its `serve` started (ISO 8601, UTC). */
  startedAt: string;
  /** The folder for the state of sessions that all hosts mount; null: it keeps them on a disk of its own. */
  storage: string | null;
  /** What it has written into that folder, for others to see that theirs is the same one. */
  beacon?: string | null;
}

export interface HostRecord extends HostEntry {
  name: string;
  instance: string;
  /** Grows with each time that it enters. What it had in an earlier one may be somebody else's by now. */
  term: number;
  /** Whether its last heartbeat is older than it said. */
  gone: boolean;
  /** How long it counts as there yet, in milliseconds; 0 when it is gone. */
  remainingMs: number;
}

/** Where a user goes. */
export interface Placement {
  /** Absent where the store is one host's alone. */
  host?: string;
  /** The shared server there; null with a server of the user's own. */
  serverId: string | null;
}

export interface UserPlacement {
  user: string;
  placement: Placement;
}

/** The version of the recorded shapes below. A store written by a newer one is refused and left untouched. */
export const SCHEMA = 1;

export interface Registry {
  /** By server id. */
  servers: Record<string, ServerRecord>;
  /** How many users were placed in turn (`round-robin`); counts up. Absent: none yet. */
  placed?: number;
  /** Who keeps the servers of which host healthy. One that died is as good as none. */
  supervisors?: SupervisorRecord[];
  /** Since when the pool admits nothing new, by the command `drain` (ISO 8601, UTC). Absent: it does. */
  drainedAt?: string;
}

/** A `serve` process. */
export interface SupervisorRecord {
  process: ProcessIdentity;
  state: "serving" | "draining";
  /** ISO 8601, UTC. */
  startedAt: string;
  /** `host:port` of its metrics and health endpoints. */
  metrics: string | null;
  /** `host:port` of its front door; absent or null: it has none. */
  door?: string | null;
}

export type Isolation = "per-user" | "shared";
export type ServerState = "starting" | "ready" | "unhealthy" | "draining" | "stopped" | "failed";

/**
 * Which process this is, beyond its PID: a PID is reused, a start time within one boot of one PID namespace is not.
 * Source of the fields: `/proc/sys/kernel/random/boot_id`, `/proc/self/ns/pid`, field 22 of `/proc/<pid>/stat` (proc(5)).
 */
export interface ProcessIdentity {
  host: string;
  bootId: string;
  pidNamespace: string;
  pid: number;
  /** Clock ticks after boot at which the process started (on macOS the text of `ps -o lstart=`). */
  startTicks: string;
}

/** A process, and which of the things that it does. */
export interface Claim extends ProcessIdentity {
  /** Absent in records of earlier versions. */
  move?: string;
}

/** Where a GitHub token comes from. The token itself is never recorded. */
export type TokenSource =
  | { from: "env"; name: string }
  | { from: "file"; path: string }
  | { from: "command"; command: string }
  /** Handed over in memory by a program that uses the library: a restart by anyone else cannot find it again. */
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
  /** Where it listened last: `restart` goes back there when the port is still free. */
  lastPort: number | null;
  /** Names one launch; the process carries it in its environment (`COPILOTFLEET_LAUNCH_ID`). */
  launchId: string | null;
  process: ProcessIdentity | null;
  /** How many bytes its log had when the launch began: earlier launches wrote those. Absent: not known. */
  logStart?: number;
  /** Who moves this server from one state to the next at the moment. Dead without finishing: anybody may clean up. */
  claim: Claim | null;
  /** Absolute path of its `COPILOT_HOME`. */
  home: string;
  /** Absolute path of its working folder. */
  cwd: string;
  token: TokenSource | null;
  runtimePath: string;
  /** What the server said of itself, null before the first answer. */
  version: string | null;
  /** Why it is `failed` or `unhealthy`; null in other states. */
  failure: string | null;
  /**
   * Whether it should run: `serve` starts what should and does not. Absent in records of earlier versions, and until a
   * server ran for the first time.
   */
  desired?: "running" | "stopped";
  /** How often in a row it ended by itself, or did not start, without a healthy time in between. Absent: never. */
  crashes?: number;
  /** The process that is to take over from this one, on the same home. */
  replacement?: Replacement | null;
}

/** A process that was started beside the running one: once that is drained, it is the server. */
export interface Replacement {
  launchId: string;
  port: number;
  /** Null until it answered. */
  process: ProcessIdentity | null;
  /** Who replaces; died without finishing: what there is of the replacement has to go, or to take over. */
  claim: Claim;
  /** When it was launched (ISO 8601, UTC). */
  startedAt: string;
  /** As in the server's record. */
  logStart?: number;
}

/** A time-bounded right to use one session. It outlives the process that took it. */
export interface Lease {
  sessionId: string;
  /** The user who holds it. */
  holder: string;
  /**
   * Grows with each lease on a session of this id, also when the session was deleted and created again in between:
   * whoever comes with an older one is too late.
   */
  fence: number;
  /** ISO 8601, UTC: for people. What decides is `remainingMs`, by a clock that wall-clock jumps do not move. */
  acquiredAt: string;
  expiresAt: string;
  remainingMs: number;
  ttlMs: number;
  /** Why it was taken from the holder before, if it was. */
  stealReason: string | null;
  /** No process holds it: `lock` without a command took it, and it lasts until `unlock` or its end. */
  detached?: true;
}

export interface LeaseRequest {
  sessionId: string;
  holder: string;
  /** A secret that the caller made up; the store keeps a hash of it. Names this request and, once granted, the lease. */
  token: string;
  ttlMs: number;
  /** How long the place in the queue is kept without being asked for again, in milliseconds. */
  placeMs: number;
  /** Take it at once, whoever holds it and whoever waits. */
  steal?: { reason: string };
  /** As in {@link Lease}. */
  detached?: true;
}

export type LeaseAnswer =
  | { granted: true; lease: Lease }
  /** `lease` is the one in force, if any is; `ahead` is how many waiters come first. */
  | { granted: false; lease: Lease | null; ahead: number };

/** What is kept of a token that a client shows at the front door: never the token itself. */
export interface TokenRecord {
  /** `host`: it stands for another host of the fleet, and is good for one connection. Absent: for a user. */
  role?: "host";
  /** Of a host's: the only host whose front door takes it. */
  door?: string;
  /** Made by the fleet for one connection, and gone with it: one whose time is over is a left-over. */
  passing?: true;
  /**
   * Of a passing one: its user's turns in this session are taken under the lease that has this fence. Whoever recorded that
   * has shown the lease's token to the store.
   */
  lease?: { sessionId: string; fence: number };
  /** 1 to 64 lower-case letters and digits; stands in the token, so that looking it up is one read. */
  id: string;
  /** Whom the token stands for. Of a host's: `host:` and its name, which no user can have. */
  user: string;
  /** SHA-256 of the whole token, in hex. A token has 256 random bits, so a plain hash cannot be searched back. */
  sha256: string;
  /** ISO 8601, UTC. */
  createdAt: string;
  /** From when on it is good for nothing; null: until it is revoked. */
  expiresAt: string | null;
}

/** A process that uses a session, and the host of the fleet that it runs on. */
export interface SessionUser extends ProcessIdentity {
  /** Absent where the store is one host's alone. */
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
  /** The server that has it, or had it last: the only one that may open it, see `Sessions`. */
  serverId: string;
  /** The host of that server, and its term when it took the session. Absent where the store is one host's alone. */
  host?: string;
  term?: number;
  /** Its host has unloaded it and uses it no more: whoever shares its storage may take it. */
  released?: boolean;
  /** Where its state has to be fetched from yet, and by whom; until that is done it is not where it belongs. */
  from?: { host: string; group: string; mark: string; taker: Claim | null };
  model: string | null;
  /** ISO 8601, UTC. */
  createdAt: string;
  lastUsedAt: string;
  /** Milliseconds after the last use until gc may delete it; null: as the fleet's configuration has it. */
  ttlMs: number | null;
  /** The process that uses an ephemeral session at the moment: with its end the session's is due. */
  usedBy: SessionUser | null;
  /** Turns that went through the fleet: one that had any must have a history on disk. */
  turns: number;
}
