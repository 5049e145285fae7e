import { type Lease, type LeaseRequest, notHeld } from "../../../model/lease.js";
import { isSameHash as isSame } from "../../../model/token.js";
import { after, type Instant, type Moment, remaining } from "./lease-clock.js";

/*
 * The recorded state of one session's lease, and the rules by which the lease changes hands. The caller passes the
 * time, so that tests need not wait.
 */

export interface LeaseState {
  sessionId: string;
  /** The highest fence of this session's leases so far. */
  fence: number;
  /** The last lease that was granted, even if it has ended. Only {@link inForce} decides whether it counts. */
  lease: Granted | null;
  /** The waiters, in the order of their first request. */
  queue: Place[];
}

export interface Granted extends Omit<Lease, "sessionId" | "remainingMs"> {
  tokenHash: string;
  end: Moment;
}

interface Place {
  holder: string;
  tokenHash: string;
  /** When the waiter loses its place if it does not ask again. */
  end: Moment;
}

/** Like `LeaseRequest` of the store's contract, but with the hash of the token. */
export type Request = Pick<LeaseRequest, "holder" | "ttlMs" | "placeMs" | "detached"> &
  Pick<Granted, "tokenHash" | "stealReason">;

export type Answer = { granted: Granted } | { granted: null; current: Granted | null; ahead: number };

/**
 * The state before the first lease. Its fence is the current time, so later fences are above those of a deleted session
 * with the same id. If the deleted session's last fence is above the current time, `LeaseRecords` keeps its record.
 */
export function emptyState(sessionId: string, wallMs: number): LeaseState {
  return { sessionId, fence: wallMs, lease: null, queue: [] };
}

export function inForce({ lease }: LeaseState, now: Instant): Granted | null {
  return lease !== null && remaining(lease.end, now) > 0 ? lease : null;
}

/** Grants the lease, or gives a place in the queue. A repeated request keeps the lease or the place. */
export function acquire(state: LeaseState, request: Request, now: Instant): Answer {
  const current = inForce(state, now);
  if (current !== null && isSame(current.tokenHash, request.tokenHash)) return { granted: current };
  if (request.stealReason !== null) return { granted: grant(state, request, now) };

  const waiting = state.queue.filter((place) => remaining(place.end, now) > 0);
  const found = waiting.findIndex((place) => isSame(place.tokenHash, request.tokenHash));
  const ahead = found === -1 ? waiting.length : found;
  // Change the queue only if a place has ended. Otherwise, each repeated request of a waiter would write to disk.
  if (waiting.length !== state.queue.length) state.queue = waiting;
  if (current === null && ahead === 0) return { granted: grant(state, request, now) };
  keepPlace(state, found, request, now);
  return { granted: null, current, ahead };
}

/** Adds a place for the waiter, or renews it. To save writes, renews it only after a third of `placeMs` has passed. */
function keepPlace(state: LeaseState, found: number, request: Request, now: Instant): void {
  const end = after(now, request.placeMs);
  const place = state.queue[found];
  if (place === undefined) state.queue.push({ holder: request.holder, tokenHash: request.tokenHash, end });
  else if (remaining(place.end, now) < (request.placeMs * 2) / 3) place.end = end;
}

function grant(state: LeaseState, request: Request, now: Instant): Granted {
  const taken = inForce(state, now) !== null;
  // `state.fence + 1` alone may be too low: if the last revision is damaged, `state` comes from an older revision.
  state.fence = Math.max(state.fence + 1, now.wallMs);
  state.lease = {
    holder: request.holder,
    fence: state.fence,
    tokenHash: request.tokenHash,
    acquiredAt: new Date(now.wallMs).toISOString(),
    expiresAt: new Date(now.wallMs + request.ttlMs).toISOString(),
    end: after(now, request.ttlMs),
    ttlMs: request.ttlMs,
    stealReason: taken ? request.stealReason : null,
    ...(request.detached === undefined ? {} : { detached: request.detached }),
  };
  leave(state, request.tokenHash);
  return state.lease;
}

export function leave(state: LeaseState, tokenHash: string): void {
  state.queue = state.queue.filter((place) => !isSame(place.tokenHash, tokenHash));
}

/** The lease in force. @throws FleetError `FLEET_LEASE_LOST` unless it belongs to the token. */
export function held(state: LeaseState, tokenHash: string, now: Instant): Granted {
  const lease = inForce(state, now);
  if (lease !== null && isSame(lease.tokenHash, tokenHash)) return lease;
  throw notHeld(state.sessionId);
}

/** Makes the token's lease end `ttlMs` from now. @throws as {@link held}. */
export function renew(state: LeaseState, tokenHash: string, ttlMs: number, now: Instant): Granted {
  const lease = held(state, tokenHash, now);
  lease.end = after(now, ttlMs);
  lease.ttlMs = ttlMs;
  lease.expiresAt = new Date(now.wallMs + ttlMs).toISOString();
  return lease;
}

/**
 * Ends the token's lease. The first waiter gets the lease only with its next request, because it may be dead by now.
 *
 * @throws as {@link held}.
 */
export function release(state: LeaseState, tokenHash: string, now: Instant): void {
  held(state, tokenHash, now);
  state.lease = null;
}
