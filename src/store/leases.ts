import { setTimeout as sleep } from "node:timers/promises";
import { FleetError, isFleetError } from "../base/errors.js";
import { assertSessionId } from "../base/ids.js";
import { type Lease, type LeaseAnswer, type LeaseRequest, notHeld } from "../base/session.js";
import { hashToken, isSameHash } from "../base/token.js";
import { isDamaged } from "./failures.js";
import { type FleetRows, kind } from "./rows.js";
import { Table } from "./table.js";

/** How long the last fence of a session is remembered after its last lease, in milliseconds. */
const REMEMBERED_MS = 24 * 3_600_000;
/** Fences that come from another store may be ahead of this machine's clock by at most this much, in milliseconds. */
const LONGEST_WAIT_MS = 10_000;

/** The lease on one session, and the queue for it. All times are of the database's clock, in milliseconds. */
interface LeaseState {
  /** The highest fence of this session's leases so far. */
  fence: number;
  /** The last lease that was granted, even if it has ended. */
  lease: Granted | null;
  /** The waiters, in the order of their first request. */
  queue: Place[];
  /** When the state may be forgotten. After that, fences still grow, because they follow the clock. */
  keptUntil: number;
}

interface Granted extends Omit<Lease, "sessionId" | "remainingMs"> {
  tokenHash: string;
  endsAt: number;
}

interface Place {
  tokenHash: string;
  /** When the waiter loses its place if it does not ask again. */
  endsAt: number;
}

export const LEASES = kind<LeaseState>("lease", {
  home: "use",
  assertId: assertSessionId,
  endsAt: ({ keptUntil }) => keptUntil,
  isVital: true,
});

/** The leases on sessions, and the queues for them. */
export class LeaseTable {
  readonly #table: Table<LeaseState>;

  constructor(rows: FleetRows) {
    this.#table = new Table(rows, LEASES);
  }

  /**
   * Acquires the lease on a session, or a place in the queue for it. To keep the place, the waiter must call again with
   * the same token within `placeMs`. Waiters get the lease in the order of their first calls. Once a token has the
   * lease, another call with it returns the same lease.
   */
  async acquire(request: LeaseRequest): Promise<LeaseAnswer> {
    const { sessionId } = request;
    return await this.#table.update(sessionId, (draft, now) => {
      draft.record ??= { fence: 0, lease: null, queue: [], keptUntil: 0 };
      const state = draft.record;
      keep(state, now + Math.max(request.ttlMs, request.placeMs));
      const tokenHash = hashToken(request.token);
      const current = inForce(state, now);
      const granted = () => ({ granted: true as const, lease: view(sessionId, grant(state, request, now), now) });
      if (current !== null && isSameHash(current.tokenHash, tokenHash))
        return { granted: true, lease: view(sessionId, current, now) };
      if (request.steal !== undefined) return granted();

      const waiting = state.queue.filter(({ endsAt }) => endsAt > now);
      if (waiting.length !== state.queue.length) state.queue = waiting;
      const found = waiting.findIndex((place) => isSameHash(place.tokenHash, tokenHash));
      const ahead = found === -1 ? waiting.length : found;
      if (current === null && ahead === 0) return granted();
      const endsAt = now + request.placeMs;
      const place = waiting[found];
      if (place === undefined) state.queue.push({ tokenHash, endsAt });
      // To save writes, renew the place only after a third of its time.
      else if (place.endsAt - now < (request.placeMs * 2) / 3) place.endsAt = endsAt;
      return { granted: false, lease: current && view(sessionId, current, now), ahead };
    });
  }

  /** Gives up a place in the queue. Succeeds even if the token has no place. */
  async leave(sessionId: string, token: string): Promise<void> {
    const leaving = this.#table.update(sessionId, ({ record }) => {
      if (record !== null) leave(record, hashToken(token));
    });
    await leaving.catch((error: unknown) => {
      // A database that has lost its data has lost the queue, too.
      if (!isFleetError(error, "FLEET_STATE_LOST")) throw error;
    });
  }

  /** Makes the lease end `ttlMs` from now. @throws as {@link check}. */
  async renew(sessionId: string, token: string, ttlMs: number): Promise<Lease> {
    const renewing = this.#table.update(sessionId, ({ record }, now) => {
      const lease = held(sessionId, record, token, now);
      if (record !== null) keep(record, now + ttlMs);
      Object.assign(lease, { endsAt: now + ttlMs, ttlMs, expiresAt: new Date(Date.now() + ttlMs).toISOString() });
      return view(sessionId, lease, now);
    });
    return await renewing.catch(lostWithData(sessionId));
  }

  /** Ends a lease. @throws as {@link check}. */
  async release(sessionId: string, token: string): Promise<void> {
    const releasing = this.#table.update(sessionId, ({ record }, now) => {
      held(sessionId, record, token, now);
      if (record !== null) record.lease = null;
    });
    await releasing.catch(lostWithData(sessionId));
  }

  /** The lease in force on a session, or null. Costs one read. */
  async read(sessionId: string): Promise<Lease | null> {
    const [lease = null] = await this.readMany([sessionId]);
    return lease;
  }

  /** The lease in force on each session, or null. Costs one read. */
  async readMany(sessionIds: readonly string[]): Promise<(Lease | null)[]> {
    const [states, now] = await Promise.all([this.#table.readMany(sessionIds), this.#table.rows.now(LEASES)]);
    return states.map((state, at) => {
      const lease = state && inForce(state, now);
      return lease && view(sessionIds[at] ?? "", lease, now);
    });
  }

  /**
   * Returns the lease in force.
   *
   * @throws FleetError `FLEET_LEASE_LOST` when the token does not hold a lease in force on the session.
   */
  async check(sessionId: string, token: string): Promise<Lease> {
    const looking = Promise.all([this.#table.read(sessionId), this.#table.rows.now(LEASES)]);
    const [state, now] = await looking.catch(lostWithData(sessionId));
    return view(sessionId, held(sessionId, state, token, now), now);
  }

  /** The highest fence so far, or a higher number; 0 if there were no fences. */
  async highestFence(): Promise<number> {
    let highest = 0;
    for await (const { record } of this.#table.each()) highest = Math.max(highest, record.fence);
    return highest;
  }

  /**
   * Waits until the current time is above `fence`. That suffices, because every new fence is at least the current time.
   * The wait is necessary only if `fence` came from a clock that is ahead of this machine's.
   */
  async raiseFences(fence: number): Promise<void> {
    const aheadMs = fence + 1 - Date.now();
    if (aheadMs > LONGEST_WAIT_MS) {
      const message = `Earlier leases were numbered by a clock that is ${aheadMs} ms ahead of this machine's, so new leases would be refused as old.`;
      throw new FleetError("FLEET_STATE_BUSY", message, {
        suggestions: ["Set the clocks of both machines right, and wait until this one has caught up."],
      });
    }
    if (aheadMs > 0) await sleep(aheadMs);
  }

  /**
   * Ends the lease on a deleted session. Remembers the last fence, because a session with the same id may be created.
   */
  async forget(sessionId: string): Promise<void> {
    const forgetting = this.#table.update(sessionId, (draft, now) => {
      if (draft.record === null) return;
      draft.record = { fence: draft.record.fence, lease: null, queue: [], keptUntil: now + REMEMBERED_MS };
    });
    await forgetting.catch(async (error: unknown) => {
      if (!isDamaged(error)) throw error;
      await this.#table.delete(sessionId);
    });
  }
}

/** Makes a state last longer than its lease and its queue. To save writes, does so long before it is necessary. */
function keep(state: LeaseState, until: number): void {
  if (state.keptUntil < until + REMEMBERED_MS / 2) state.keptUntil = until + REMEMBERED_MS;
}

function inForce({ lease }: LeaseState, now: number): Granted | null {
  return lease !== null && lease.endsAt > now ? lease : null;
}

function grant(state: LeaseState, { holder, token, ttlMs, steal, detached }: LeaseRequest, now: number): Granted {
  const isTaken = inForce(state, now) !== null;
  const wallMs = Date.now();
  // The fence follows the clock, so that it grows even if the database has lost its data.
  state.fence = Math.max(state.fence + 1, wallMs);
  state.lease = {
    holder,
    fence: state.fence,
    tokenHash: hashToken(token),
    acquiredAt: new Date(wallMs).toISOString(),
    expiresAt: new Date(wallMs + ttlMs).toISOString(),
    endsAt: now + ttlMs,
    ttlMs,
    stealReason: isTaken ? (steal?.reason ?? null) : null,
    ...(detached === undefined ? {} : { detached }),
  };
  leave(state, state.lease.tokenHash);
  return state.lease;
}

function leave(state: LeaseState, tokenHash: string): void {
  state.queue = state.queue.filter((place) => !isSameHash(place.tokenHash, tokenHash));
}

/** The lease in force. @throws FleetError `FLEET_LEASE_LOST` unless it belongs to the token */
function held(sessionId: string, state: LeaseState | null, token: string, now: number): Granted {
  const lease = state && inForce(state, now);
  if (lease !== null && isSameHash(lease.tokenHash, hashToken(token))) return lease;
  throw notHeld(sessionId);
}

/** A database that has lost its data has lost the lease, too. */
function lostWithData(sessionId: string): (error: unknown) => never {
  return (error) => {
    throw isFleetError(error, "FLEET_STATE_LOST") ? notHeld(sessionId, error) : error;
  };
}

function view(sessionId: string, { tokenHash: _, endsAt, ...lease }: Granted, now: number): Lease {
  return { sessionId, ...lease, remainingMs: Math.max(0, Math.floor(endsAt - now)) };
}
