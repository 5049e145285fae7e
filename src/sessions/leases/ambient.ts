import { AsyncLocalStorage } from "node:async_hooks";
import { abortable, deadline, isTimeout } from "../../runtime/clock.js";
import { sessionBusy } from "../problems.js";
import type { HeldLease } from "./held.js";
import type { TurnLease } from "./seen.js";

interface Ambient {
  lease: HeldLease;
  isOver: boolean;
  turns: TurnQueue;
  outer: Ambient | undefined;
}

/**
 * Uses Node's `AsyncLocalStorage` to find the lease under which the calling code runs. `Leases.hold` runs work under a
 * lease.
 */
export class AmbientLeases {
  readonly #current = new AsyncLocalStorage<Ambient | undefined>();

  /** Runs `work`. Calls that `work` makes find the lease until `work` has ended. */
  async run<T>(lease: HeldLease, work: (lease: HeldLease) => Promise<T>): Promise<T> {
    const { sessionId, holder } = lease.lease;
    const turns = this.#find(sessionId, holder)?.turns ?? new TurnQueue();
    const ambient: Ambient = { lease, isOver: false, turns, outer: this.#current.getStore() };
    try {
      return await this.#current.run(ambient, async () => await work(lease));
    } finally {
      ambient.isOver = true;
    }
  }

  find(sessionId: string, holder: string): HeldLease | null {
    return this.#find(sessionId, holder)?.lease ?? null;
  }

  /**
   * Waits for the earlier turns under the caller's lease, and returns the lease for one turn. Releasing the returned
   * lease lets the next turn begin. Null if the caller does not run under a lease of this holder on this session.
   *
   * @throws FleetError `FLEET_SESSION_BUSY` when the earlier turns take longer than `waitMs` milliseconds.
   */
  async turn(
    sessionId: string,
    holder: string,
    { waitMs, signal }: { waitMs: number; signal: AbortSignal | undefined },
  ): Promise<TurnLease | null> {
    const ambient = this.#find(sessionId, holder);
    if (ambient === undefined) return null;
    const { lease } = ambient;
    const leave = await ambient.turns.enter(sessionId, waitMs, signal);
    return {
      fence: lease.fence,
      signal: lease.signal,
      check: async () => await lease.check(),
      release: async () => leave(),
    };
  }

  /** Calls `start`, which begins work for other users. That work does not find the caller's lease. */
  outside<T>(start: () => T): T {
    return this.#current.run(undefined, start);
  }

  #find(sessionId: string, holder: string): Ambient | undefined {
    for (let ambient = this.#current.getStore(); ambient !== undefined; ambient = ambient.outer) {
      const { lease } = ambient.lease;
      if (!ambient.isOver && lease.sessionId === sessionId && lease.holder === holder) return ambient;
    }
    return undefined;
  }
}

/** Runs the turns under one lease one after the other, because two turns at once could receive each other's replies. */
class TurnQueue {
  #last: Promise<void> = Promise.resolve();

  /** Waits for the earlier turns. Resolves with a function that ends this turn. */
  async enter(sessionId: string, waitMs: number, signal: AbortSignal | undefined): Promise<() => void> {
    const before = this.#last;
    let leave = (): void => undefined;
    const left = new Promise<void>((resolve) => {
      leave = resolve;
    });
    this.#last = before.then(() => left);
    using limit = deadline(waitMs, signal);
    try {
      await abortable(before, limit.signal);
      return leave;
    } catch (error) {
      leave();
      throw isTimeout(error) && signal?.aborted !== true ? sessionBusy(sessionId) : error;
    }
  }
}
