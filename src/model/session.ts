import type { Claim, ProcessIdentity } from "./process.js";

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
