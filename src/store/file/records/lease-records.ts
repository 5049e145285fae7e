import { setTimeout as sleep } from "node:timers/promises";
import { FleetError, quote } from "../../../base/errors.js";
import { type Lease, type LeaseAnswer, type LeaseRequest, notHeld } from "../../../base/session.js";
import { system } from "../../../base/system/system.js";
import { hashToken, isSameHash as isSame } from "../../../base/token.js";
import type { LeaseStore } from "../../ports.js";
import type { StoreContext } from "../failures.js";
import { RecordFolder } from "./record-folder.js";

/** Fences that come from another store may be ahead of this machine's clock by at most this much, in milliseconds. */
const LONGEST_WAIT_MS = 10_000;

/** The records of leases. The first request for a lease creates its record, which lasts until the session is deleted. */
export class LeaseRecords implements LeaseStore {
  readonly #context: StoreContext;
  readonly #now: () => Instant;
  readonly records: RecordFolder<LeaseState>;

  constructor(context: StoreContext) {
    this.#context = context;
    this.#now = context.leaseNow;
    this.records = new RecordFolder(context, {
      name: "leases",
      title: (id) => `the lease on ${quote(id)}`,
      // A lease need not survive a loss of power, because its holder does not. Fences keep growing even if the record
      // is lost, because they come from the clock.
      durable: false,
      ifDamaged: "The fleet uses the previous revision.",
    });
  }

  async acquire(request: LeaseRequest): Promise<LeaseAnswer> {
    const { sessionId, token, steal, ...rest } = request;
    const wanted = { ...rest, tokenHash: hashToken(token), stealReason: steal?.reason ?? null };
    for (;;) {
      const answer = await this.records.update(sessionId, (state) => acquire(state, wanted, this.#now()));
      if (answer === undefined) {
        await this.records.create(sessionId, emptyState(sessionId, this.#now().wallMs));
      } else if (answer.granted === null) {
        const { current, ahead } = answer;
        return { granted: false, lease: current && this.#view(sessionId, current), ahead };
      } else {
        const lease = this.#view(sessionId, answer.granted);
        // The commit may have taken longer than the lease lasts.
        return lease.remainingMs > 0 ? { granted: true, lease } : { granted: false, lease: null, ahead: 0 };
      }
    }
  }

  async leave(sessionId: string, token: string): Promise<void> {
    const tokenHash = hashToken(token);
    await this.records.update(sessionId, (state) => leave(state, tokenHash));
  }

  async renew(sessionId: string, token: string, ttlMs: number): Promise<Lease> {
    const tokenHash = hashToken(token);
    const granted = await this.records.update(sessionId, (state) => renew(state, tokenHash, ttlMs, this.#now()));
    if (granted === undefined) throw notHeld(sessionId);
    const lease = this.#view(sessionId, granted);
    if (lease.remainingMs === 0) throw notHeld(sessionId);
    return lease;
  }

  async release(sessionId: string, token: string): Promise<void> {
    const tokenHash = hashToken(token);
    const released = await this.records.update(sessionId, (state) => {
      release(state, tokenHash, this.#now());
      return true;
    });
    if (released === undefined) throw notHeld(sessionId);
  }

  async read(sessionId: string): Promise<Lease | null> {
    this.#context.checkRoot();
    // This method runs before each turn, and most sessions never had a lease. `has` is cheaper than a failed read.
    if (!this.records.has(sessionId)) return null;
    const state = this.records.read(sessionId);
    const lease = state && inForce(state, this.#now());
    return lease && this.#view(sessionId, lease);
  }

  async check(sessionId: string, token: string): Promise<Lease> {
    this.#context.checkRoot();
    const state = this.records.read(sessionId);
    if (state === null) throw notHeld(sessionId);
    return this.#view(sessionId, held(state, hashToken(token), this.#now()));
  }

  /**
   * The highest fence in all records. For an unreadable record, the current time counts as its fence, because fences
   * come from the clock: see {@link raiseFences}.
   */
  async highestFence(): Promise<number> {
    this.#context.checkRoot();
    return this.records.ids().reduce((highest, id) => {
      const fence = this.records.readOr(id, { fence: this.#now().wallMs })?.fence ?? 0;
      return Math.max(highest, fence);
    }, 0);
  }

  /**
   * Waits until the current time is above `fence`. That suffices, because every new fence is at least the current time.
   * The wait is necessary only if `fence` came from a clock that is ahead of this machine's clock. Throws if it would
   * take longer than `LONGEST_WAIT_MS`.
   */
  async raiseFences(fence: number): Promise<void> {
    const aheadMs = fence + 1 - this.#now().wallMs;
    if (aheadMs > LONGEST_WAIT_MS) {
      const message = `Earlier leases were numbered by a clock that is ${aheadMs} ms ahead of this machine's, so new leases would be refused as old.`;
      throw new FleetError("FLEET_STATE_BUSY", message, {
        suggestions: ["Set the clocks of both machines right, and wait until this one has caught up."],
      });
    }
    if (aheadMs > 0) await sleep(aheadMs);
  }

  /** Deletes the record of a deleted session's lease. If fences could decrease without the record, only empties it. */
  async delete(sessionId: string): Promise<void> {
    if (this.#mayGoBack(sessionId)) {
      await this.records.update(sessionId, (state) => {
        state.lease = null;
        state.queue = [];
      });
      return;
    }
    await this.records.delete(sessionId);
  }

  /**
   * Whether fences would decrease if the record were deleted now. The fences of a new record start at the current time
   * in milliseconds. The last fence can be higher if the clock was set back, or if the lease changed hands more than
   * once a millisecond. For an unreadable record the answer is false, because nothing else would delete that record.
   */
  #mayGoBack(sessionId: string): boolean {
    const state = this.records.readOr(sessionId, null);
    return state !== null && state.fence >= this.#now().wallMs;
  }

  /** Removes the lease records of sessions that do not exist, unless somebody still holds the lease. */
  async sweepOrphans(isRecorded: (sessionId: string) => boolean): Promise<void> {
    for (const id of this.records.ids()) {
      if (isRecorded(id)) continue;
      // An unreadable record protects no holder, because even the holder cannot use it.
      const state = this.records.readOr(id, null);
      if (state === null || inForce(state, this.#now()) === null) await this.delete(id);
    }
  }

  /** The lease in the form that callers get. Its remaining time counts from now, not from the commit. */
  #view(sessionId: string, { tokenHash: _, end, ...lease }: Granted): Lease {
    return { sessionId, ...lease, remainingMs: Math.floor(remaining(end, this.#now())) };
  }
}

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

interface Granted extends Omit<Lease, "sessionId" | "remainingMs"> {
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
type Request = Pick<LeaseRequest, "holder" | "ttlMs" | "placeMs" | "detached"> &
  Pick<Granted, "tokenHash" | "stealReason">;

type Answer = { granted: Granted } | { granted: null; current: Granted | null; ahead: number };

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

/**
 * A time on the clock for leases, which counts from the start of the machine. All processes of the machine share this clock,
 * and nobody can set it. Two times are comparable only if their boot ids are the same. So no lease survives a restart of the
 * machine. Its holder does not survive the restart either.
 */
export interface Instant {
  bootId: string;
  /** Milliseconds since boot. */
  monotonicMs: number;
  /** Milliseconds since the epoch, for people and for fences. */
  wallMs: number;
}

type Moment = Omit<Instant, "wallMs">;

export function now(): Instant {
  const { clock } = system();
  return { bootId: clock.bootId(), monotonicMs: clock.nowMs(), wallMs: Date.now() };
}

function after(instant: Instant, ms: number): Moment {
  return { bootId: instant.bootId, monotonicMs: instant.monotonicMs + ms };
}

/** Milliseconds from `instant` to `moment`; 0 if `moment` has passed. */
function remaining(moment: Moment, instant: Instant): number {
  if (moment.bootId !== instant.bootId) return 0;
  return Math.max(0, moment.monotonicMs - instant.monotonicMs);
}
