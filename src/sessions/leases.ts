import { randomBytes } from "node:crypto";
import { ALLOWED_LEASE_TTL, LONGEST_TIMER_MS, SHORTEST_LEASE_MS } from "../config/duration.js";
import { FleetError, option, quote } from "../errors.js";
import { pause } from "../runtime/deadline.js";
import type { Lease, LeaseAnswer, Store } from "../store/store.js";
import { HeldLease } from "./lease-held.js";
import { SeenLease, type TurnLease } from "./lease-seen.js";

export { HeldLease } from "./lease-held.js";

/** What a command that runs under `copilotfleet lock` finds in its environment. */
export const LEASE_VARIABLES = {
  session: "COPILOTFLEET_LEASE_SESSION",
  token: "COPILOTFLEET_LEASE_TOKEN",
  fence: "COPILOTFLEET_LEASE_FENCE",
} as const;

/** How long a waiter may fall silent before it loses its place: what a dead one costs those behind it. */
const PLACE_MS = 3_000;
const FIRST_PAUSE_MS = 10;
const LONGEST_PAUSE_MS = 100;

export interface AcquireOptions {
  sessionId: string;
  /** The user who is to hold it. */
  holder: string;
  /** Rejects if the holder may not use the session. Asked first, and again after a wait: much may have happened then. */
  mayUse?: () => Promise<unknown>;
  /** 1 second to 24 days. It is renewed for as long as it is held: this is how long it outlives a holder that died. */
  ttlMs: number;
  /** How long to wait for others, in milliseconds; 0 tries once. */
  waitMs: number;
  signal?: AbortSignal;
  /** Take it at once, whoever holds it and whoever waits. The reason is shown to everybody. */
  steal?: { reason: string };
}

/** Leases on sessions, taken in the order in which they were asked for, by any number of processes. */
export class Leases {
  readonly #store: Store;

  constructor(store: Store) {
    this.#store = store;
  }

  /**
   * Takes the lease on a session, after those who asked before.
   *
   * @throws FleetError `FLEET_SESSION_LOCKED` when it could not be had within `waitMs`, `FLEET_DURATION_INVALID` for a TTL
   * out of bounds; the signal's own reason when that aborts.
   */
  async acquire(options: AcquireOptions): Promise<HeldLease> {
    const { sessionId, waitMs, signal } = options;
    assertTtl(options.ttlMs);
    signal?.throwIfAborted();
    await options.mayUse?.();
    const token = randomBytes(32).toString("hex");
    const until = performance.now() + waitMs;
    try {
      for (let attempt = 0; ; attempt++) {
        const asked = performance.now();
        const answer = await this.#ask(options, token);
        signal?.throwIfAborted();
        if (answer.granted) {
          if (attempt > 0) await options.mayUse?.();
          return new HeldLease({ store: this.#store, token, lease: answer.lease, asked, adopted: false });
        }
        const left = until - performance.now();
        if (left <= 0) throw sessionLocked(sessionId, answer, waitMs);
        await pause(Math.min(pauseMs(attempt, answer), left), signal);
      }
    } catch (error) {
      await this.#withdraw(sessionId, token);
      throw error;
    }
  }

  /**
   * Goes on under a lease that was taken elsewhere, by its token. Releasing it then leaves it to whoever took it.
   *
   * @param holder The user who has to be its holder; left out: anybody who has the token.
   * @throws FleetError `FLEET_LEASE_LOST` for a wrong or expired token.
   */
  async adopt(sessionId: string, token: string, holder?: string): Promise<HeldLease> {
    const asked = performance.now();
    const lease = await this.#store.checkLease(sessionId, token);
    if (holder !== undefined && lease.holder !== holder) {
      const message = `The lease on session ${quote(sessionId)} is held by ${quote(lease.holder)}, not by ${quote(holder)}.`;
      throw new FleetError("FLEET_LEASE_LOST", message, { suggestions: [`copilotfleet lock ${sessionId} --show`] });
    }
    return new HeldLease({ store: this.#store, token, lease, asked, adopted: true });
  }

  /**
   * Goes on under a lease that a process of another host holds, by its fence: whoever says that may, has seen its token.
   *
   * @param holder The user who has to be its holder.
   * @throws FleetError `FLEET_LEASE_LOST` when it is not in force.
   */
  async see(sessionId: string, fence: number, holder: string): Promise<TurnLease> {
    return await SeenLease.see(this.#store, sessionId, { fence, holder });
  }

  /**
   * {@link adopt} if the environment says that this process runs under a lease of this session (`copilotfleet lock SESSION
   * -- COMMAND`), else {@link acquire}. Without it a command would wait for the very lease that it runs under.
   */
  async enter(options: AcquireOptions, env: NodeJS.ProcessEnv): Promise<HeldLease> {
    return (await this.outer(options.sessionId, options.holder, env)) ?? (await this.acquire(options));
  }

  /** The lease that this process runs under, if it is one of this session. @throws FleetError as {@link adopt}. */
  async outer(sessionId: string, holder: string, env: NodeJS.ProcessEnv): Promise<HeldLease | null> {
    const token = env[LEASE_VARIABLES.token];
    const isUnder = token !== undefined && token !== "" && env[LEASE_VARIABLES.session] === sessionId;
    return isUnder ? await this.adopt(sessionId, token, holder) : null;
  }

  /**
   * Runs `work` under a lease, which is released at its end.
   *
   * @throws what `work` throws; FleetError as {@link acquire}, and `FLEET_LEASE_LOST` when the lease was lost meanwhile,
   * whatever `work` made of it.
   */
  async hold<T>(options: AcquireOptions, work: (lease: HeldLease) => Promise<T>): Promise<T> {
    const lease = await this.acquire(options);
    let result: T;
    try {
      result = await work(lease);
    } catch (error) {
      // The work's own error says more than that the lease was lost on the way, which may be its very reason.
      await lease.release().catch(() => "lost, or it ends by itself");
      throw error;
    }
    await lease.release();
    return result;
  }

  async #ask({ sessionId, holder, ttlMs, steal }: AcquireOptions, token: string): Promise<LeaseAnswer> {
    return await this.#store.acquireLease({
      sessionId,
      holder,
      token,
      ttlMs,
      placeMs: PLACE_MS,
      ...(steal === undefined ? {} : { steal }),
    });
  }

  /** Leaves nothing behind, neither a place nor a lease that was granted to somebody who gave up. */
  async #withdraw(sessionId: string, token: string): Promise<void> {
    const ended = [this.#store.leaveLeaseQueue(sessionId, token), this.#store.releaseLease(sessionId, token)];
    // Neither can be had back by anybody else, and both end by themselves: what failed before is what to tell.
    await Promise.allSettled(ended);
  }
}

function assertTtl(ttlMs: number): void {
  if (ttlMs >= SHORTEST_LEASE_MS && ttlMs <= LONGEST_TIMER_MS) return;
  throw new FleetError("FLEET_DURATION_INVALID", `The TTL is ${ttlMs} ms: allowed is ${ALLOWED_LEASE_TTL}`);
}

/** Short at first, for leases that last a moment; a waiter at the front is there when the holder's time is over. */
function pauseMs(attempt: number, answer: LeaseAnswer & { granted: false }): number {
  const pause = Math.min(FIRST_PAUSE_MS * 1.5 ** attempt, LONGEST_PAUSE_MS) * (0.75 + Math.random() / 2);
  const isNext = answer.ahead === 0 && answer.lease !== null;
  return isNext ? Math.min(pause, Math.ceil(answer.lease?.remainingMs ?? 0) + 1) : pause;
}

function sessionLocked(sessionId: string, answer: LeaseAnswer & { granted: false }, waitMs: number): FleetError {
  const waited = waitMs > 0 ? ` (waited ${seconds(waitMs)})` : "";
  const others = answer.ahead === 0 ? "" : `, and ${answer.ahead} ${answer.ahead === 1 ? "waits" : "wait"} for it`;
  return new FleetError(
    "FLEET_SESSION_LOCKED",
    `Session ${quote(sessionId)} is ${by(answer.lease)}${others}${waited}.`,
    {
      suggestions: [
        `copilotfleet lock ${sessionId} --show`,
        `Wait longer for it: ${option("wait", "5m")}`,
        `copilotfleet lock ${sessionId} --user USER --steal --reason "WHY"`,
      ],
    },
  );
}

function by(lease: Lease | null): string {
  if (lease === null) return "about to be locked by those who asked before";
  return `locked by ${quote(lease.holder)} for another ${seconds(lease.remainingMs)}, unless it is renewed`;
}

function seconds(ms: number): string {
  return `${(ms / 1_000).toFixed(ms < 10_000 ? 1 : 0)} s`;
}
