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
  /** The host of that server, and the host's term when it took the session. Absent if there is a single host. */
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

/** The choices of a user who creates a session. */
export interface NewSession {
  id: string;
  owner: string;
  purpose?: string | undefined;
  /** Other users who may use it. With a list, even an empty one, the session is collaborative. */
  members?: readonly string[] | undefined;
  model?: string | null | undefined;
  ttlMs?: number | undefined;
  /** The process that uses it, if it is deleted when that use ends. */
  ephemeralUse?: SessionUser | undefined;
}

/** The record of a session that has not had a turn. */
export function newSessionRecord(
  { id, owner, purpose, members, model, ttlMs, ephemeralUse }: NewSession,
  place: Pick<SessionRecord, "serverId" | "host" | "term">,
): SessionRecord {
  const now = new Date().toISOString();
  return {
    id,
    owner,
    purpose: purpose ?? null,
    kind: members === undefined ? "private" : "collaborative",
    members: [...(members ?? [])],
    persistence: ephemeralUse === undefined ? "persistent" : "ephemeral",
    ...place,
    model: model ?? null,
    createdAt: now,
    lastUsedAt: now,
    ttlMs: ttlMs ?? null,
    usedBy: ephemeralUse ?? null,
    turns: 0,
  };
}

export function mayUse({ owner, members }: SessionRecord, user: string): boolean {
  return owner === user || members.includes(user);
}

/** The host that may have a session, and its present term. Without a term, the host has its own storage. */
export interface Ownership {
  host: string;
  term?: number;
}

/** Whether the record places the session on that host now. True for every session if the store serves a single host. */
export function isOwnedBy(record: SessionRecord, owner: Ownership | undefined): boolean {
  if (owner === undefined) return true;
  // With its own storage a host ignores `released` and `from`, because the state never left its disk.
  if (owner.term !== undefined && (record.released === true || record.from !== undefined)) return false;
  return (record.host ?? owner.host) === owner.host && (owner.term === undefined || record.term === owner.term);
}
