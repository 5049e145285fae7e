import { type FleetError, isFleetError } from "../../errors.js";
import type { Lease } from "../../model/lease.js";
import type { Clock } from "../../runtime/clock.js";
import { abortable } from "../../runtime/clock.js";
import type { Store } from "../../store/ports.js";
import { leaseLost, leaseOver } from "../problems.js";
import type { TurnLease } from "./seen.js";

/**
 * How often a holder checks whether another process has taken the lease from it, in milliseconds. Each check costs one read.
 */
const LOOK_MS = 1_000;

export interface Holding {
  store: Store;
  clock: Clock;
  token: string;
  lease: Lease;
  /** The clock's time right before this process asked the store for the lease. */
  asked: number;
  /** Whether the lease belongs to another process, which will release it. */
  adopted: boolean;
}

/**
 * A lease that this process holds. Until its release, it is checked each second and renewed after each third of its TTL.
 *
 * It is lost if another process takes it over by force. It also ends if this process is suspended, its event loop is
 * blocked or the store is unreachable for too long. In all these cases, `signal` aborts, and every later {@link check}
 * throws `FLEET_LEASE_LOST`. After a suspension, `signal` aborts late. So call {@link check} right before anything that
 * must not happen without the lease, or let the receiver compare the fence.
 */
export class HeldLease implements TurnLease {
  readonly token: string;
  readonly #store: Store;
  readonly #clock: Clock;
  readonly #adopted: boolean;
  readonly #lost = new AbortController();
  readonly #over = new AbortController();
  readonly #watching: Promise<void>;
  #lease: Lease;
  /** The clock's time at which the lease may have ended. Never later than the lease's end in the store. */
  #end: number;
  #cancelExpiry = (): void => undefined;

  constructor({ store, clock, token, lease, asked, adopted }: Holding) {
    this.#store = store;
    this.#clock = clock;
    this.token = token;
    this.#adopted = adopted;
    this.#lease = lease;
    this.#end = endOf(lease, asked);
    this.#arm();
    this.#watching = this.#watch();
  }

  /** The lease as of its last renewal. */
  get lease(): Lease {
    return this.#lease;
  }

  get fence(): number {
    return this.#lease.fence;
  }

  /** Aborts with `FLEET_LEASE_LOST` when the lease is lost, but not when it is released. */
  get signal(): AbortSignal {
    return this.#lost.signal;
  }

  async check(): Promise<void> {
    this.#refuseIfOver();
    try {
      await this.#store.leases.check(this.#lease.sessionId, this.token);
    } catch (error) {
      throw await this.#explained(error);
    }
    this.#refuseIfOver(); // the lease may have ended during the read
  }

  /**
   * Gives the lease back. If the lease was adopted, only ends the renewals, because the process that took the lease releases
   * it.
   */
  async release(): Promise<void> {
    if (this.#adopted) {
      try {
        await this.check();
      } finally {
        await this.detach(); // always, because otherwise the lease would outlive the process that took it
      }
      return;
    }
    await this.detach();
    this.#refuseIfOver();
    try {
      await this.#store.leases.release(this.#lease.sessionId, this.token);
    } catch (error) {
      throw await this.#explained(error);
    }
  }

  /** Stops renewing. The lease stays in force until its end, or until somebody releases it with its token. */
  async detach(): Promise<void> {
    this.#over.abort();
    this.#cancelExpiry();
    await this.#watching;
  }

  async #watch(): Promise<void> {
    const { ttlMs } = this.#lease;
    for (let failed = false; ; ) {
      const due = this.#end - (ttlMs * 2) / 3;
      const pause = failed ? ttlMs / 10 : Math.max(0, due - this.#clock.now());
      // `ref: false`: a renewal must not keep the process alive.
      const options = { ref: false, signal: this.#over.signal };
      await this.#clock.wait(Math.min(pause, LOOK_MS), options).catch(() => "over");
      if (this.#isOver()) return;
      failed = !(await this.#look(this.#clock.now() >= due));
    }
  }

  /**
   * Checks or renews the lease. @returns false if that failed. Unless the lease is lost, a later call may succeed. If
   * no call succeeds, the timer ends the lease.
   */
  async #look(renew: boolean): Promise<boolean> {
    const { sessionId, ttlMs } = this.#lease;
    const asked = this.#clock.now();
    const { token } = this;
    const answer = renew
      ? this.#store.leases.renew(sessionId, token, ttlMs)
      : this.#store.leases.check(sessionId, token);
    try {
      const lease = await abortable(answer, this.#over.signal);
      if (renew && !this.#isOver()) {
        this.#lease = lease;
        this.#end = endOf(lease, asked);
        this.#arm();
      }
      return true;
    } catch (error) {
      await this.#explained(error);
      return false;
    }
  }

  #arm(): void {
    this.#cancelExpiry();
    const tick = () => {
      if (!this.#isOver()) this.#arm();
    };
    this.#cancelExpiry = this.#clock.after(Math.max(1, this.#end - this.#clock.now()), tick);
  }

  /** Whether the lease is over. Also compares the time here, because a blocked event loop delays the timer. */
  #isOver(): boolean {
    if (!this.#over.signal.aborted && this.#clock.now() >= this.#end) {
      this.#lose(leaseLost(this.#lease, "it was not renewed in time"));
    }
    return this.#over.signal.aborted;
  }

  #refuseIfOver(): void {
    this.#isOver();
    if (this.#lost.signal.aborted) throw this.#lost.signal.reason;
    // No timer watches a detached lease, so compare its end with the clock here.
    if (this.#clock.now() >= this.#end) throw leaseLost(this.#lease, "it was not renewed in time");
  }

  #lose(reason: FleetError): void {
    if (this.#over.signal.aborted) return;
    this.#cancelExpiry();
    this.#over.abort();
    this.#lost.abort(reason);
  }

  /**
   * If the store refused the token, aborts `signal` with an error that names the current holder and the reason, and
   * returns this error. Returns any other error unchanged.
   */
  async #explained(error: unknown): Promise<unknown> {
    if (!isFleetError(error, "FLEET_LEASE_LOST")) return error;
    const successor = await this.#store.leases.read(this.#lease.sessionId).catch(() => null);
    const reason = leaseOver(this.#lease, successor, error);
    this.#lose(reason);
    return this.#lost.signal.aborted ? this.#lost.signal.reason : reason;
  }
}

/**
 * The clock's time at which the lease ends. The store began to count the lease's time at some moment after `asked`.
 * Counts from `asked`, so that the result is never later than the lease's end in the store.
 */
function endOf({ remainingMs, ttlMs }: Lease, asked: number): number {
  return asked + Math.min(remainingMs, ttlMs);
}
