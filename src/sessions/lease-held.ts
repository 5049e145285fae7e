import { setTimeout as delay } from "node:timers/promises";
import { type FleetError, isFleetError } from "../errors.js";
import { abortable } from "../runtime/deadline.js";
import type { Lease, Store } from "../store/store.js";
import type { TurnLease } from "./lease-seen.js";
import { leaseLost, leaseOver } from "./problems.js";

/** How often a holder looks whether the lease was taken from it, in milliseconds. Costs one read each. */
const LOOK_MS = 1_000;

export interface Holding {
  store: Store;
  token: string;
  lease: Lease;
  /** `performance.now()` from before the store was asked: by then the lease's time may have begun to run. */
  asked: number;
  /** Whether it is somebody else's to release. */
  adopted: boolean;
}

/**
 * A lease in the hands of this process: renewed at a third of its TTL until it is released, and watched in between.
 *
 * It can be lost all the same: taken over by force, or past its end since this process was suspended, or its event loop
 * blocked, or the store unreachable for that long. Then `signal` aborts, with the `FLEET_LEASE_LOST` that every later
 * {@link check} throws. A process that slept cannot have noticed yet: whatever must not happen without the lease needs a
 * {@link check} right before it, or has to be refused by its fence where it arrives.
 */
export class HeldLease implements TurnLease {
  readonly token: string;
  readonly #store: Store;
  readonly #adopted: boolean;
  readonly #lost = new AbortController();
  readonly #over = new AbortController();
  readonly #watching: Promise<void>;
  #lease: Lease;
  /** `performance.now()` at which it may have ended: never later than the store's own end, only earlier. */
  #end: number;
  #expiry: NodeJS.Timeout | undefined;

  constructor({ store, token, lease, asked, adopted }: Holding) {
    this.#store = store;
    this.token = token;
    this.#adopted = adopted;
    this.#lease = lease;
    this.#end = endOf(lease, asked);
    this.#arm();
    this.#watching = this.#watch();
  }

  /** As it was when it was last renewed. */
  get lease(): Lease {
    return this.#lease;
  }

  get fence(): number {
    return this.#lease.fence;
  }

  /** Aborts when the lease is lost; its reason is the `FLEET_LEASE_LOST`. Not when it is released. */
  get signal(): AbortSignal {
    return this.#lost.signal;
  }

  /**
   * Makes sure that the lease is in force. @throws FleetError `FLEET_LEASE_LOST`; `FLEET_STATE_…` when the store cannot
   * tell, which says nothing about the lease.
   */
  async check(): Promise<void> {
    this.#refuseIfOver();
    try {
      await this.#store.checkLease(this.#lease.sessionId, this.token);
    } catch (error) {
      throw await this.#explained(error);
    }
    // Once more: it may have ended during the look.
    this.#refuseIfOver();
  }

  /**
   * Gives the lease back. One that was adopted only stops being watched: it is for whoever took it to release.
   *
   * @throws FleetError `FLEET_LEASE_LOST` when it was lost before: what was done under it may have met what others did.
   */
  async release(): Promise<void> {
    if (this.#adopted) {
      try {
        await this.check();
      } finally {
        await this.detach(); // in any case: renewed here, it would outlive whoever took it
      }
      return;
    }
    await this.detach();
    this.#refuseIfOver();
    try {
      await this.#store.releaseLease(this.#lease.sessionId, this.token);
    } catch (error) {
      throw await this.#explained(error);
    }
  }

  /** Stops renewing. The lease stays in force until its end, or until somebody releases it by its token. */
  async detach(): Promise<void> {
    this.#over.abort();
    clearTimeout(this.#expiry);
    await this.#watching;
  }

  async #watch(): Promise<void> {
    const { ttlMs } = this.#lease;
    for (let failed = false; ; ) {
      const due = this.#end - (ttlMs * 2) / 3;
      const pause = failed ? ttlMs / 10 : Math.max(0, due - performance.now());
      // A renewal must not keep a process alive that has nothing else to do.
      const options = { ref: false, signal: this.#over.signal };
      await delay(Math.min(pause, LOOK_MS), undefined, options).catch(() => "over");
      if (this.#isOver()) return;
      failed = !(await this.#look(performance.now() >= due));
    }
  }

  /** @returns false when the store did not answer, which may be over at the next look; the end comes in any case. */
  async #look(renew: boolean): Promise<boolean> {
    const { sessionId, ttlMs } = this.#lease;
    const asked = performance.now();
    const { token } = this;
    const answer = renew ? this.#store.renewLease(sessionId, token, ttlMs) : this.#store.checkLease(sessionId, token);
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
    clearTimeout(this.#expiry);
    const tick = () => {
      if (!this.#isOver()) this.#arm();
    };
    this.#expiry = setTimeout(tick, Math.max(1, this.#end - performance.now()));
    this.#expiry.unref();
  }

  /** Also notices that the time is over: a timer is late by as long as the event loop was blocked. */
  #isOver(): boolean {
    if (!this.#over.signal.aborted && performance.now() >= this.#end) {
      this.#lose(leaseLost(this.#lease, "it was not renewed in time"));
    }
    return this.#over.signal.aborted;
  }

  #refuseIfOver(): void {
    this.#isOver();
    if (this.#lost.signal.aborted) throw this.#lost.signal.reason;
    // Detached: nothing watches it any more, but the time is still known.
    if (performance.now() >= this.#end) throw leaseLost(this.#lease, "it was not renewed in time");
  }

  #lose(reason: FleetError): void {
    if (this.#over.signal.aborted) return;
    clearTimeout(this.#expiry);
    this.#over.abort();
    this.#lost.abort(reason);
  }

  /** The store's refusal in words for the one who had the lease: who has it now, and why. It is then told to all. */
  async #explained(error: unknown): Promise<unknown> {
    if (!isFleetError(error, "FLEET_LEASE_LOST")) return error;
    const successor = await this.#store.readLease(this.#lease.sessionId).catch(() => null);
    const reason = leaseOver(this.#lease, successor, error);
    this.#lose(reason);
    return this.#lost.signal.aborted ? this.#lost.signal.reason : reason;
  }
}

/** The store's clock started between `asked` and now: the earlier of the two is the safe one. */
function endOf({ remainingMs, ttlMs }: Lease, asked: number): number {
  return asked + Math.min(remainingMs, ttlMs);
}
