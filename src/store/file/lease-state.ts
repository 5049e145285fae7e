import { isSameHash as isSame, leaseLost } from "../lease-token.js";
import { after, type Instant, type Moment, remaining } from "./lease-clock.js";

/*
 * What is recorded of one session's lease, and the rules by which it changes hands. Nothing here reads a clock or a file:
 * the time comes in, so that the rules can be tested without waiting.
 */

export interface LeaseState {
  sessionId: string;
  /** No lease has a higher one yet. */
  fence: number;
  /** The last one granted, also after its end: only {@link inForce} says whether it counts. */
  lease: Granted | null;
  /** Who waits, in the order in which they first asked. */
  queue: Place[];
}

export interface Granted {
  holder: string;
  fence: number;
  tokenHash: string;
  /** ISO 8601, UTC. */
  acquiredAt: string;
  expiresAt: string;
  end: Moment;
  ttlMs: number;
  stealReason: string | null;
  detached?: true;
}

interface Place {
  holder: string;
  tokenHash: string;
  /** When it is lost, unless it is asked for again. */
  end: Moment;
}

/** As `LeaseRequest` of the store's contract, the token hashed. */
export interface Request {
  holder: string;
  tokenHash: string;
  ttlMs: number;
  placeMs: number;
  stealReason: string | null;
  detached?: true;
}

export type Answer = { granted: Granted } | { granted: null; current: Granted | null; ahead: number };

/**
 * The state before the first lease. Its fence is the time, and so above all fences of a session of this id that was deleted
 * before: those were at most the time at which they were given out.
 */
export function emptyState(sessionId: string, wallMs: number): LeaseState {
  return { sessionId, fence: wallMs, lease: null, queue: [] };
}

export function inForce({ lease }: LeaseState, now: Instant): Granted | null {
  return lease !== null && remaining(lease.end, now) > 0 ? lease : null;
}

/** Grants the lease, or gives a place in the queue; the same request again gives the same answer. */
export function acquire(state: LeaseState, request: Request, now: Instant): Answer {
  const current = inForce(state, now);
  if (current !== null && isSame(current.tokenHash, request.tokenHash)) return { granted: current };
  if (request.stealReason !== null) return { granted: grant(state, request, now) };

  const waiting = state.queue.filter((place) => remaining(place.end, now) > 0);
  const found = waiting.findIndex((place) => isSame(place.tokenHash, request.tokenHash));
  const ahead = found === -1 ? waiting.length : found;
  // The queue is left as it is when nothing happened, so that those who only wait write nothing.
  if (waiting.length !== state.queue.length) state.queue = waiting;
  if (current === null && ahead === 0) return { granted: grant(state, request, now) };
  keepPlace(state, found, request, now);
  return { granted: null, current, ahead };
}

/** A place is renewed when a third of its time is over, and not each time that it is asked for. */
function keepPlace(state: LeaseState, found: number, request: Request, now: Instant): void {
  const end = after(now, request.placeMs);
  const place = state.queue[found];
  if (place === undefined) state.queue.push({ holder: request.holder, tokenHash: request.tokenHash, end });
  else if (remaining(place.end, now) < (request.placeMs * 2) / 3) place.end = end;
}

function grant(state: LeaseState, request: Request, now: Instant): Granted {
  const taken = inForce(state, now) !== null;
  // The time, and not just one more than the last: when its newest revision is damaged, the state does not know the last.
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

/** Gives up a place in the queue. */
export function leave(state: LeaseState, tokenHash: string): void {
  state.queue = state.queue.filter((place) => !isSame(place.tokenHash, tokenHash));
}

/** The lease in force, which has to be this token's. @throws FleetError `FLEET_LEASE_LOST`. */
export function held(state: LeaseState, tokenHash: string, now: Instant): Granted {
  const lease = inForce(state, now);
  if (lease !== null && isSame(lease.tokenHash, tokenHash)) return lease;
  throw leaseLost(state.sessionId);
}

/** Puts the end of the token's lease `ttlMs` from now. @throws FleetError `FLEET_LEASE_LOST`. */
export function renew(state: LeaseState, tokenHash: string, ttlMs: number, now: Instant): Granted {
  const lease = held(state, tokenHash, now);
  lease.end = after(now, ttlMs);
  lease.ttlMs = ttlMs;
  lease.expiresAt = new Date(now.wallMs + ttlMs).toISOString();
  return lease;
}

/**
 * Ends the token's lease. Whoever is first in the queue takes it when asking next; nobody is handed it, since a waiter may
 * be dead. @throws FleetError `FLEET_LEASE_LOST`.
 */
export function release(state: LeaseState, tokenHash: string, now: Instant): void {
  held(state, tokenHash, now);
  state.lease = null;
}
