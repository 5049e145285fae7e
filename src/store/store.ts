/**
 * The contract between the fleet and whatever keeps its state. `file/` is the embedded default; every adapter has to
 * pass `test/contract/store.contract.ts`.
 *
 * Guarantees every adapter gives:
 * - A write that was acknowledged (its promise resolved) is there exactly once, also after the death of any process.
 * - A write that was not acknowledged is there whole or not at all.
 * - Two writers never undo each other: `update…` runs `change` on the newest state, again if another writer was first.
 */
export interface Store {
  readonly kind: "file" | "redis";

  /** The newest committed registry. An empty store gives an empty registry; an unreadable one never does. */
  readRegistry(): Promise<Registry>;

  /**
   * Changes the registry atomically. `change` gets a private draft and may edit it in place; it must be synchronous
   * and free of effects, since it runs again when another writer committed first. What it throws aborts the update:
   * nothing is written. A draft left as it was is not written either. Resolves with what the last run returned.
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

  /** All records, in no particular order. A record that is created or deleted meanwhile may or may not be there. */
  listSessions(): Promise<SessionRecord[]>;

  /** Problems met while reading, each repaired or worked around already, for a command to show. Emptied by the call. */
  takeWarnings(): string[];

  /** Releases what the adapter holds open. Writes under way are finished first. */
  close(): Promise<void>;
}

/** The version of the recorded shapes below. A store written by a newer one is refused and left untouched. */
export const SCHEMA = 1;

export interface Registry {
  /** By server id. */
  servers: Record<string, ServerRecord>;
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
  /** Who moves this server from one state to the next at the moment. Dead without finishing: anybody may clean up. */
  claim: ProcessIdentity | null;
  /** Absolute path of its `COPILOT_HOME`. */
  home: string;
  /** Absolute path of its working folder. */
  cwd: string;
  token: TokenSource | null;
  runtimePath: string;
  /** What the server said of itself, null before the first answer. */
  version: string | null;
  /** Why it is `failed`; null in other states. */
  failure: string | null;
}

export type SessionState = "active" | "idle" | "draining" | "gone";

export interface SessionRecord {
  id: string;
  owner: string;
  purpose: string | null;
  kind: "private" | "collaborative";
  members: string[];
  persistence: "persistent" | "ephemeral";
  /** The server whose home holds its state. */
  serverId: string;
  model: string | null;
  /** ISO 8601, UTC. */
  createdAt: string;
  lastUsedAt: string;
  /** Milliseconds after the last use until gc may delete it; null: never by age of its own. */
  ttlMs: number | null;
  /** Turns that went through the fleet: one that had any must have a history on disk. */
  turns: number;
}
