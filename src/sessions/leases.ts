import { randomBytes } from "node:crypto";
import { ALLOWED_LEASE_TTL, LONGEST_TIMER_MS, SHORTEST_LEASE_MS } from "../config/duration.js";
import { FleetError, option, quote } from "../errors.js";
import { pause } from "../runtime/deadline.js";
import type { Lease, LeaseAnswer, Store } from "../store/store.js";
import { AmbientLeases } from "./ambient-leases.js";
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
/** How long a wait may last before the waiter is told of it. */
const NOTICE_MS = 1_000;
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
  /** It is not to be renewed: it lasts until it is released by its token, or until its end. */
  detached?: true;
  /** Do not wait for a detached lease of the holder's own: only the holder can release it. */
  refuseOwn?: boolean;
  onWait?: (wait: LeaseWait) => void;
}

/** What a caller waits for who waits for the lease on a session. */
export interface LeaseWait {
  sessionId: string;
  /** The lease in force; null if those who asked before are about to take it. */
  lease: Lease | null;
  /** How many others asked before. */
  ahead: number;
}

/** Leases on sessions, taken in the order in which they were asked for, by any number of processes. */
export class Leases {
  /** Of the callers that {@link hold} runs. */
  readonly ambient = new AmbientLeases();
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
    const { sessionId, holder, waitMs, signal, refuseOwn = false } = options;
    assertTtl(options.ttlMs);
    signal?.throwIfAborted();
    await options.mayUse?.();
    const token = randomBytes(32).toString("hex");
    const begun = performance.now();
    const until = begun + waitMs;
    let { onWait } = options;
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
        const isOwn = answer.lease?.detached === true && answer.lease.holder === holder;
        if (isOwn && refuseOwn && answer.lease !== null && answer.lease.remainingMs > left) throw ownLock(answer.lease);
        if (left <= 0) throw isOwn && answer.lease !== null ? ownLock(answer.lease) : sessionLocked(options, answer);
        if (isOwn || asked - begun >= NOTICE_MS) {
          onWait?.({ sessionId, lease: answer.lease, ahead: answer.ahead });
          onWait = undefined;
        }
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
   * Runs `work` under a lease, which is released at its end, and is {@link ambient} until then. Work of the same holder on the same
   * session that it calls goes on under the same lease.
   *
   * @throws what `work` throws; FleetError as {@link acquire}, and `FLEET_LEASE_LOST` when the lease was lost meanwhile,
   * whatever `work` made of it.
   */
  async hold<T>(options: AcquireOptions, work: (lease: HeldLease) => Promise<T>): Promise<T> {
    const { sessionId, holder, steal } = options;
    const outer = steal === undefined ? this.ambient.find(sessionId, holder) : null;
    const lease = outer === null ? await this.acquire(options) : await this.adopt(sessionId, outer.token, holder);
    let result: T;
    try {
      result = await this.ambient.run(lease, work);
    } catch (error) {
      // The work's own error says more than that the lease was lost on the way, which may be its very reason.
      await lease.release().catch(() => "lost, or it ends by itself");
      throw error;
    }
    await lease.release();
    return result;
  }

  async #ask({ sessionId, holder, ttlMs, steal, detached }: AcquireOptions, token: string): Promise<LeaseAnswer> {
    return await this.#store.acquireLease({
      sessionId,
      holder,
      token,
      ttlMs,
      placeMs: PLACE_MS,
      ...(steal === undefined ? {} : { steal }),
      ...(detached === undefined ? {} : { detached }),
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

/** The holder's own lock, which would be waited for in vain. */
function ownLock({ sessionId, holder, remainingMs }: Lease): FleetError {
  const { session, token } = LEASE_VARIABLES;
  const message =
    `Session ${quote(sessionId)} is locked by ${quote(holder)} for another ${seconds(remainingMs)}. ` +
    "Continue with the token of that lease, or release it first.";
  return new FleetError("FLEET_SESSION_LOCKED", message, {
    suggestions: [
      `copilotfleet unlock ${sessionId} --token TOKEN`,
      `export ${session}=${sessionId} ${token}=TOKEN`,
      `Wait for another process to release it: ${option("wait", "5m")}`,
    ],
  });
}

function sessionLocked(
  { sessionId, holder, waitMs }: AcquireOptions,
  answer: LeaseAnswer & { granted: false },
): FleetError {
  const waited = waitMs > 0 ? ` (waited ${seconds(waitMs)})` : "";
  const others = answer.ahead === 0 ? "" : `, and ${answer.ahead} ${answer.ahead === 1 ? "waits" : "wait"} for it`;
  return new FleetError(
    "FLEET_SESSION_LOCKED",
    `Session ${quote(sessionId)} is ${by(answer.lease)}${others}${waited}.`,
    {
      suggestions: [
        `copilotfleet lock ${sessionId} --show`,
        `Wait longer for it: ${option("wait", "5m")}`,
        `copilotfleet lock ${sessionId} --user ${holder} --steal --reason "WHY"`,
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
