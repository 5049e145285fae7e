import { FleetError, quote } from "./errors.js";
import type { Claim, ProcessIdentity } from "./server.js";

/** A process that uses a session, and the host on which it runs. */
export interface SessionUser extends ProcessIdentity {
  /** Absent if the store serves a single host. */
  at?: string;
}

export const SESSION_STATES = ["active", "idle", "draining", "gone"] as const;
export type SessionState = (typeof SESSION_STATES)[number];

export interface SessionRecord {
  id: string;
  owner: string;
  purpose: string | null;
  /** Absent: the session has had no turn, or its owner removed the title. */
  title?: string;
  kind: "private" | "collaborative";
  members: string[];
  persistence: "persistent" | "ephemeral";
  /** The server that has the session, or had it last. No other server may open it. */
  serverId: string;
  /**
   * The host of that server. `term` is the host's term when it took the session. Both are absent in a fleet on one
   * host.
   */
  host?: string;
  term?: number;
  /** The place from which `host` has to fetch the session's state. Absent once the state is on `host`. */
  from?: { host: string; group: string; mark: string; taker: Claim | null };
  model: string | null;
  /** The names or patterns of the session's tools. Absent: the tools of the configuration. */
  tools?: string[];
  /** ISO 8601, UTC. */
  createdAt: string;
  lastUsedAt: string;
  /** Milliseconds after the last use until gc may delete the session; null: the fleet's configuration decides. */
  ttlMs: number | null;
  /** The process that uses an ephemeral session now. When it exits, the session is due for deletion. */
  usedBy: SessionUser | null;
  /**
   * The number of turns that went through the fleet. A session with at least one such turn must have a history on disk.
   */
  turns: number;
}

/** `aborted`: the user stopped the turn. `cut`: the server ended or the session was unloaded during the turn. */
export const TURN_OUTCOMES = ["completed", "failed", "aborted", "cut"] as const;
export type TurnOutcome = (typeof TURN_OUTCOMES)[number];

/** The usage of a turn, as the model service reported it. */
export interface TurnUsage {
  /** Requests to the model. */
  requests: number;
  inputTokens: number;
  outputTokens: number;
  cacheReadTokens: number;
  /** Null if nothing reported it. */
  credits: number | null;
}

/** A prompt that was sent with an idempotency key. All requests of a user with the same key share one turn. */
export interface KeyedTurn {
  user: string;
  key: string;
  sessionId: string;
  /** When the session was created. A later session may have the same id. */
  sessionCreatedAt: string;
  /** A digest of everything that the request asks for. */
  digest: string;
  /** ISO 8601, UTC. After this time, the key is free again. */
  expiresAt: string;
  /** The length of the session's history when the prompt was about to be sent, in bytes. */
  sentAtBytes: number;
  /** The id of the prompt, which is the id of the turn. Null until the server has begun the prompt. */
  messageId: string | null;
  usage: TurnUsage | null;
  /** How the turn ended; null until it has. The reply is in the session's history. */
  outcome: "answered" | { code: string; message: string } | null;
}

/** The choices of a user who creates a session. */
export interface NewSession {
  id: string;
  owner: string;
  purpose?: string | undefined;
  /** Default: the first prompt. */
  title?: string | undefined;
  /** Other users who may use the session. With a list, even an empty one, the session is collaborative. */
  members?: readonly string[] | undefined;
  model?: string | null | undefined;
  tools?: readonly string[] | undefined;
  ttlMs?: number | undefined;
  /** The number of turns that an imported session had before. */
  turns?: number | undefined;
  /** The process that uses the session. Set if the session is deleted when that use ends. */
  ephemeralUse?: SessionUser | undefined;
}

/** The record of a new session. */
export function newSessionRecord(
  { id, owner, purpose, title, members, model, tools, ttlMs, turns = 0, ephemeralUse }: NewSession,
  place: Pick<SessionRecord, "serverId" | "host" | "term">,
): SessionRecord {
  const now = new Date().toISOString();
  return {
    id,
    owner,
    purpose: purpose ?? null,
    ...(title === undefined ? {} : { title }),
    kind: members === undefined ? "private" : "collaborative",
    members: [...(members ?? [])],
    persistence: ephemeralUse === undefined ? "persistent" : "ephemeral",
    ...place,
    model: model ?? null,
    ...(tools === undefined ? {} : { tools: [...tools] }),
    createdAt: now,
    lastUsedAt: now,
    ttlMs: ttlMs ?? null,
    usedBy: ephemeralUse ?? null,
    turns,
  };
}

/** How a user relates to a session. Everybody but its owner and its members is `foreign`, and must not learn of it. */
export function relationOf({ owner, members }: SessionRecord, user: string): "own" | "member" | "foreign" {
  if (owner === user) return "own";
  return members.includes(user) ? "member" : "foreign";
}

export function mayUse(record: SessionRecord, user: string): boolean {
  return relationOf(record, user) !== "foreign";
}

/** A host, and its present term. Without a term, the host keeps sessions on its own disk. */
export interface Ownership {
  host: string;
  term?: number;
}

/**
 * Whether the host has the session now. Always true if `owner` is undefined, because the fleet then has only one host.
 */
export function isOwnedBy(record: SessionRecord, owner: Ownership | undefined): boolean {
  if (owner === undefined) return true;
  // A host that keeps sessions on its own disk ignores `from`, because the state never leaves that disk.
  if (owner.term !== undefined && record.from !== undefined) return false;
  return (record.host ?? owner.host) === owner.host && (owner.term === undefined || record.term === owner.term);
}

/**
 * The tools of a session. Null: all. The configuration limits what the session's owner chose. On a shared server, tools
 * act with the same rights for all users, so only tools that the configuration names are available.
 */
export function toolsOf(
  { tools }: Pick<SessionRecord, "tools">,
  { session }: { session: { tools: readonly string[] | null } },
  isolation: "per-user" | "shared",
): string[] | null {
  const allowed = session.tools ?? (isolation === "shared" ? [] : null);
  if (tools === undefined) return allowed && [...allowed];
  return tools.filter((name) => allowed === null || allowed.includes(name));
}

/** A time-bounded right to use one session. It outlives the process that took it. */
export interface Lease {
  sessionId: string;
  /** The user who holds the lease. */
  holder: string;
  /**
   * Grows with each lease on this session id, even if the session is deleted and created again. The fleet refuses a
   * holder with a lower fence.
   */
  fence: number;
  /** ISO 8601, UTC, for people. The fleet decides by `remainingMs`, because a wall clock may jump. */
  acquiredAt: string;
  expiresAt: string;
  remainingMs: number;
  ttlMs: number;
  /** Why the lease was taken from the previous holder; null if nobody held it. */
  stealReason: string | null;
  /**
   * Set if `lock` took the lease without a command to run. No process renews the lease, so it lasts until `unlock` or
   * until it expires.
   */
  detached?: true;
}

export interface LeaseRequest {
  sessionId: string;
  holder: string;
  /**
   * A secret that the caller made. It identifies this request and then the lease. The store keeps only a hash of it.
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
  /** `lease` is the lease in force, or null. `ahead` is the number of waiters before this one. */
  | { granted: false; lease: Lease | null; ahead: number };

/**
 * The error for a token that does not hold the lease. It is the same for a wrong token, an expired lease and a session
 * that does not exist, so that it does not reveal which of these is the case.
 */
export function notHeld(sessionId: string, cause?: unknown): FleetError {
  return new FleetError(
    "FLEET_LEASE_LOST",
    `This token does not hold the lease on session ${quote(sessionId)}, or the lease has ended.`,
    { suggestions: [`copilotfleet lock ${sessionId} --show`], cause, retryable: false },
  );
}
