import { AsyncLocalStorage } from "node:async_hooks";
import { abortable, deadline, isTimeout } from "../runtime/deadline.js";
import type { HeldLease } from "./lease-held.js";
import type { TurnLease } from "./lease-seen.js";
import { sessionBusy } from "./problems.js";

interface Ambient {
  lease: HeldLease;
  isOver: boolean;
  turns: TurnQueue;
  outer: Ambient | undefined;
}

/** The lease that a caller runs under, because the work under that lease called it. */
export class AmbientLeases {
  readonly #current = new AsyncLocalStorage<Ambient | undefined>();

  /** Runs `work`, whose calls find the lease until `work` has settled. */
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
   * The lease for one turn, which comes after the earlier turns under the same lease; releasing it lets the next turn begin.
   * Null for callers that run under no such lease.
   *
   * @throws FleetError `FLEET_SESSION_BUSY` after `waitMs`; the signal's own reason when that aborts.
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

  /** Calls what serves others: it must not run under the lease of its caller. */
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

/** Turns under one lease, one after the other: two at once would take each other's answers. */
class TurnQueue {
  #last: Promise<void> = Promise.resolve();

  /** Waits for the turns before. Resolves with what ends this one. */
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
