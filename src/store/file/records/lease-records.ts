import { setTimeout as sleep } from "node:timers/promises";
import { FleetError, quote } from "../../../errors.js";
import { type Lease, type LeaseAnswer, type LeaseRequest, notHeld } from "../../../model/lease.js";
import { hashToken } from "../../../model/token.js";
import type { LeaseStore } from "../../ports.js";
import type { StoreContext } from "../context.js";
import { type Instant, remaining } from "./lease-clock.js";
import {
  acquire,
  emptyState,
  type Granted,
  held,
  inForce,
  type LeaseState,
  leave,
  release,
  renew,
} from "./lease-state.js";
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
