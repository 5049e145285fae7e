import { randomBytes } from "node:crypto";
import { ALLOWED_LEASE_TTL, LONGEST_TIMER_MS, SHORTEST_LEASE_MS, writeDuration } from "../../config/values/duration.js";
import { FleetError, option, quote } from "../../errors.js";
import type { Lease, LeaseAnswer } from "../../model/lease.js";
import { type Clock, systemClock } from "../../runtime/clock.js";
import type { Store } from "../../store/ports.js";
import { AmbientLeases } from "./ambient.js";
import { HeldLease, type Holding } from "./held.js";
import { SeenLease, type TurnLease } from "./seen.js";

export { HeldLease } from "./held.js";

/** The environment variables of a command that runs under `copilotfleet lock`. */
export const LEASE_VARIABLES = {
  session: "COPILOTFLEET_LEASE_SESSION",
  token: "COPILOTFLEET_LEASE_TOKEN",
  fence: "COPILOTFLEET_LEASE_FENCE",
} as const;

/**
 * After this time without a request, in milliseconds, a waiter loses its place in the queue. A dead waiter delays the
 * next waiter by this time.
 */
const PLACE_MS = 3_000;
/** How long a wait lasts before `onWait` is called, in milliseconds. */
export const NOTICE_MS = 1_000;
const FIRST_PAUSE_MS = 10;
const LONGEST_PAUSE_MS = 100;

export interface AcquireOptions {
  sessionId: string;
  holder: string;
  /** Rejects if the holder may not use the session. Called before the wait, and again after it. */
  mayUse?: () => Promise<unknown>;
  /** How long the lease outlives a holder that died, in milliseconds: 1 second to 24 days. */
  ttlMs: number;
  /** How long to wait for other holders and waiters, in milliseconds; 0 tries once. */
  waitMs: number;
  signal?: AbortSignal;
  /** Take the lease at once, even if others hold it or wait for it. Everybody can see the reason. */
  steal?: { reason: string };
  /** Do not renew the lease. It lasts until somebody releases it with its token, or until its end. */
  detached?: true;
  /**
   * Fail at once if the same holder has a detached lease that outlasts `waitMs`, because only the holder could release that
   * lease.
   */
  refuseOwn?: boolean;
  onWait?: (wait: LeaseWait) => void;
}

export interface LeaseWait {
  sessionId: string;
  /** The lease in force. Null if an earlier waiter is about to take the lease, or if a turn runs without a lease. */
  lease: Lease | null;
  /** How many other waiters come before this one. */
  ahead: number;
}

/** Leases on sessions. Processes get them in the order in which they asked. */
export class Leases {
  /** The leases under which {@link hold} runs work. */
  readonly ambient = new AmbientLeases();
  readonly #store: Store;
  readonly #clock: Clock;

  constructor(store: Store, clock = systemClock) {
    this.#store = store;
    this.#clock = clock;
  }

  /**
   * Acquires the lease on a session, after all earlier waiters.
   *
   * @throws FleetError `FLEET_SESSION_LOCKED` when the lease was not available within `waitMs`.
   */
  async acquire(options: AcquireOptions): Promise<HeldLease> {
    const { sessionId, holder, ttlMs, waitMs, signal, steal, detached, refuseOwn = false } = options;
    assertTtl(ttlMs);
    signal?.throwIfAborted();
    await options.mayUse?.();
    const token = randomBytes(32).toString("hex");
    const mode = { ...(steal === undefined ? {} : { steal }), ...(detached === undefined ? {} : { detached }) };
    const request = { sessionId, holder, token, ttlMs, placeMs: PLACE_MS, ...mode };
    const begun = this.#clock.now();
    const until = begun + waitMs;
    let told: string | undefined;
    try {
      for (let attempt = 0; ; attempt++) {
        const asked = this.#clock.now();
        const answer = await this.#store.leases.acquire(request);
        // If the lease was stolen, keep it despite an abort, because the former holder has already lost it.
        if (steal === undefined || !answer.granted) signal?.throwIfAborted();
        if (answer.granted) {
          if (attempt > 0) await options.mayUse?.();
          return this.#held(token, answer.lease, { asked, adopted: false });
        }
        const left = until - this.#clock.now();
        const isOwn = answer.lease?.detached === true && answer.lease.holder === holder;
        if (isOwn && refuseOwn && answer.lease !== null && answer.lease.remainingMs > left) throw ownLock(answer.lease);
        if (left <= 0) throw isOwn && answer.lease !== null ? ownLock(answer.lease) : sessionLocked(options, answer);
        if (isOwn || asked - begun >= NOTICE_MS) {
          const { lease, ahead } = answer;
          const wait = JSON.stringify([lease?.holder, lease?.expiresAt, ahead]);
          if (wait !== told) options.onWait?.({ sessionId, lease, ahead });
          told = wait;
        }
        await this.#clock.wait(Math.min(pauseMs(attempt, answer), left), { signal });
      }
    } catch (error) {
      await this.#withdraw(sessionId, token);
      throw error;
    }
  }

  /**
   * Continues, with the lease's token, under a lease that another process took. Releasing the returned lease only stops
   * the renewals by this process. The other process keeps the lease.
   *
   * @param holder the user who must hold the lease. Default: any user.
   * @throws FleetError `FLEET_LEASE_LOST` for a wrong or expired token, or when another user holds the lease.
   */
  async adopt(sessionId: string, token: string, holder?: string): Promise<HeldLease> {
    const asked = this.#clock.now();
    const lease = await this.#store.leases.check(sessionId, token);
    if (holder !== undefined && lease.holder !== holder) {
      const message = `The lease on session ${quote(sessionId)} is held by ${quote(lease.holder)}, not by ${quote(holder)}.`;
      const suggestions = [`copilotfleet lock ${sessionId} --show`] as const;
      throw new FleetError("FLEET_LEASE_LOST", message, { suggestions, retryable: false });
    }
    return this.#held(token, lease, { asked, adopted: true });
  }

  /**
   * Continues under the lease with this fence and holder, which a process of another host holds. That host has already
   * checked the token.
   */
  async see(sessionId: string, fence: number, holder: string): Promise<TurnLease> {
    return await SeenLease.see({ store: this.#store, clock: this.#clock }, sessionId, { fence, holder });
  }

  /**
   * Adopts the lease under which this process runs (`copilotfleet lock SESSION -- COMMAND`), because the process must not
   * wait for that lease. If it does not run under a lease on this session, acquires one.
   */
  async enter(options: AcquireOptions, env: NodeJS.ProcessEnv): Promise<HeldLease> {
    return (await this.outer(options.sessionId, options.holder, env)) ?? (await this.acquire(options));
  }

  /** The lease on this session that this process runs under; null if there is none. */
  async outer(sessionId: string, holder: string, env: NodeJS.ProcessEnv): Promise<HeldLease | null> {
    const token = env[LEASE_VARIABLES.token];
    const isUnder = token !== undefined && token !== "" && env[LEASE_VARIABLES.session] === sessionId;
    return isUnder ? await this.adopt(sessionId, token, holder) : null;
  }

  /**
   * Runs `work` under a lease and then releases the lease. Turns that `work` runs for the same holder in the same
   * session use the same lease.
   *
   * @throws FleetError `FLEET_LEASE_LOST` when the lease was lost during the work, even if `work` succeeded.
   */
  async hold<T>(options: AcquireOptions, work: (lease: HeldLease) => Promise<T>): Promise<T> {
    const { sessionId, holder, steal } = options;
    const outer = steal === undefined ? this.ambient.find(sessionId, holder) : null;
    const lease = outer === null ? await this.acquire(options) : await this.adopt(sessionId, outer.token, holder);
    return await this.under(lease, work);
  }

  /** Like {@link hold}, but runs `work` under a lease that the caller has already taken. */
  async under<T>(lease: HeldLease, work: (lease: HeldLease) => Promise<T>): Promise<T> {
    let result: T;
    try {
      result = await this.ambient.run(lease, work);
    } catch (error) {
      // Throw only the error of `work`. If the release also fails, the lease is already lost, or it will expire.
      await lease.release().catch(() => "lost, or it expires");
      throw error;
    }
    await lease.release();
    return result;
  }

  #held(token: string, lease: Lease, how: Pick<Holding, "asked" | "adopted">): HeldLease {
    return new HeldLease({ store: this.#store, clock: this.#clock, token, lease, ...how });
  }

  /**
   * Gives up the place in the queue. Also releases the lease, because the store may have granted it to this caller after
   * all.
   */
  async #withdraw(sessionId: string, token: string): Promise<void> {
    const ended = [this.#store.leases.leave(sessionId, token), this.#store.leases.release(sessionId, token)];
    // Ignore failures, because the place in the queue and the lease also expire.
    await Promise.allSettled(ended);
  }
}

function assertTtl(ttlMs: number): void {
  if (ttlMs >= SHORTEST_LEASE_MS && ttlMs <= LONGEST_TIMER_MS) return;
  throw new FleetError("FLEET_DURATION_INVALID", `The TTL is ${writeDuration(ttlMs)}. Allowed: ${ALLOWED_LEASE_TTL}`);
}

/**
 * How long to wait before asking the store again, in milliseconds. The first pauses are short, because some leases last
 * only a moment. The first waiter in the queue asks again no later than at the end of the lease in force.
 */
function pauseMs(attempt: number, answer: LeaseAnswer & { granted: false }): number {
  const pause = Math.min(FIRST_PAUSE_MS * 1.5 ** attempt, LONGEST_PAUSE_MS) * (0.75 + Math.random() / 2);
  const isNext = answer.ahead === 0 && answer.lease !== null;
  return isNext ? Math.min(pause, Math.ceil(answer.lease?.remainingMs ?? 0) + 1) : pause;
}

/** The error if the user who asks for the lease already holds it. */
function ownLock({ sessionId, holder, remainingMs }: Lease): FleetError {
  const { session, token } = LEASE_VARIABLES;
  const message =
    `Session ${quote(sessionId)} is locked by ${quote(holder)} for another ${seconds(remainingMs)}. ` +
    "Continue with the token of that lease, or release it first.";
  return new FleetError("FLEET_SESSION_LOCKED", message, {
    suggestions: [
      `copilotfleet unlock ${sessionId} --token TOKEN`,
      `export ${session}=${sessionId} ${token}=TOKEN`,
      `Wait with ${option("wait", "5m")} until another process releases it.`,
    ],
  });
}

function sessionLocked(
  { sessionId, holder, waitMs }: AcquireOptions,
  answer: LeaseAnswer & { granted: false },
): FleetError {
  const waited = waitMs > 0 ? ` (waited ${seconds(waitMs)})` : "";
  const others = answer.ahead === 0 ? "" : `, and ${answer.ahead} ${answer.ahead === 1 ? "waits" : "wait"} for it`;
  const message = `Session ${quote(sessionId)} is ${by(answer.lease)}${others}${waited}.`;
  return new FleetError("FLEET_SESSION_LOCKED", message, {
    suggestions: [
      `copilotfleet lock ${sessionId} --show`,
      `Wait longer for it with ${option("wait", "5m")}.`,
      `copilotfleet lock ${sessionId} --user ${holder} --steal --reason "WHY"`,
    ],
  });
}

function by(lease: Lease | null): string {
  if (lease === null) return "about to be locked by a user who asked first";
  return `locked by ${quote(lease.holder)} for another ${seconds(lease.remainingMs)}, unless it is renewed`;
}

function seconds(ms: number): string {
  return `${(ms / 1_000).toFixed(ms < 10_000 ? 1 : 0)} s`;
}
