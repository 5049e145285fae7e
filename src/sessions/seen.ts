import type { Clock } from "../base/clock.js";
import { isFleetError } from "../base/errors.js";
import type { Lease } from "../base/session.js";
import type { Store } from "../store/store.js";
import { leaseOver } from "./problems.js";

/** A lease under which turns run. This process or another process holds it. */
export interface TurnLease {
  readonly fence: number;
  /** Aborts with `FLEET_LEASE_LOST` when the lease is lost, but not when it is released. */
  readonly signal: AbortSignal;
  /**
   * @throws FleetError `FLEET_LEASE_LOST` when the lease is not in force; `FLEET_STATE_…` when the store cannot be
   * read.
   */
  check(): Promise<void>;
  /** Ends the work under the lease. @throws FleetError `FLEET_LEASE_LOST` when the lease was lost before. */
  release(): Promise<void>;
}

interface SeenLeaseContext {
  store: Store;
  clock: Clock;
}

/** How often to check whether the lease is still in force, in milliseconds. Each check costs one read. */
const LOOK_MS = 1_000;

/**
 * A lease that a process on another host holds and renews. This host recognizes the lease by its fence, which no other
 * lease on the session has. If this host sees no renewal in time, the lease counts as lost.
 */
export class SeenLease implements TurnLease {
  readonly #store: Store;
  readonly #clock: Clock;
  readonly #lost = new AbortController();
  readonly #over = new AbortController();
  readonly #watching: Promise<void>;
  readonly #lease: Lease;
  /** The clock's time at which the lease may have ended. Never later than the lease's end in the store. */
  #end: number;
  #cancelExpiry = (): void => undefined;

  private constructor({ store, clock }: SeenLeaseContext, lease: Lease, asked: number) {
    this.#store = store;
    this.#clock = clock;
    this.#lease = lease;
    this.#end = asked + lease.remainingMs;
    this.#arm();
    this.#watching = this.#watch();
  }

  /**
   * Finds the lease with this fence and this holder. @throws FleetError `FLEET_LEASE_LOST` when that lease is not in
   * force.
   */
  static async see(context: SeenLeaseContext, sessionId: string, { fence, holder }: { fence: number; holder: string }) {
    const asked = context.clock.now();
    const lease = await context.store.leases.read(sessionId);
    if (lease?.fence !== fence || lease.holder !== holder) throw leaseOver({ sessionId, holder }, lease);
    return new SeenLease(context, lease, asked);
  }

  get fence(): number {
    return this.#lease.fence;
  }

  get signal(): AbortSignal {
    return this.#lost.signal;
  }

  async check(): Promise<void> {
    await this.#look();
    this.#refuseIfOver(); // it may have ended during the read
  }

  async release(): Promise<void> {
    try {
      await this.check();
    } finally {
      this.#over.abort();
      this.#cancelExpiry();
      await this.#watching;
    }
  }

  async #watch(): Promise<void> {
    for (;;) {
      const options = { ref: false, signal: this.#over.signal };
      await this.#clock.wait(LOOK_MS, options).catch(() => "over");
      if (this.#over.signal.aborted) return;
      // If the store does not answer, try again in the next round. If it never answers, the timer ends the lease.
      await this.#look().catch(() => "lost, or not known");
    }
  }

  /** @throws FleetError `FLEET_LEASE_LOST`. */
  async #look(): Promise<void> {
    this.#refuseIfOver();
    const asked = this.#clock.now();
    const now = await this.#store.leases.read(this.#lease.sessionId).catch((error: unknown) => {
      if (isFleetError(error, "FLEET_STATE_LOST")) return null; // the lease is lost, too
      throw error;
    });
    if (now?.fence !== this.#lease.fence) throw this.#lose(now);
    this.#end = Math.max(this.#end, asked + now.remainingMs);
    this.#arm();
  }

  #arm(): void {
    this.#cancelExpiry();
    if (this.#over.signal.aborted) return;
    const tick = () => {
      if (this.#clock.now() >= this.#end) this.#lose(null);
      else this.#arm();
    };
    this.#cancelExpiry = this.#clock.after(Math.max(1, this.#end - this.#clock.now()), tick);
  }

  #refuseIfOver(): void {
    if (this.#lost.signal.aborted) throw this.#lost.signal.reason;
    if (this.#clock.now() >= this.#end) throw this.#lose(null);
  }

  /** Aborts `signal`. @returns its reason. */
  #lose(successor: Lease | null): unknown {
    this.#cancelExpiry();
    this.#over.abort();
    this.#lost.abort(leaseOver(this.#lease, successor));
    return this.#lost.signal.reason;
  }
}
