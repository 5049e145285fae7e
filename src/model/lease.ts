import { FleetError, quote } from "../errors.js";

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
  /** A secret that the caller made. It identifies this request and then the lease. The store keeps only a hash of it. */
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
 * The error for a token that does not hold the lease. It is the same for a wrong token, an expired lease and a session that
 * does not exist, so that it does not reveal which of these is the case.
 */
export function notHeld(sessionId: string, cause?: unknown): FleetError {
  return new FleetError(
    "FLEET_LEASE_LOST",
    `This token does not hold the lease on session ${quote(sessionId)}, or the lease has ended.`,
    { suggestions: [`copilotfleet lock ${sessionId} --show`], cause, retryable: false },
  );
}
