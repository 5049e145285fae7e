import { AsyncLocalStorage } from "node:async_hooks";
import { randomBytes } from "node:crypto";
import { abortable, type Clock, deadline, isTimeout, systemClock } from "../base/clock.js";
import { FleetError, isFleetError, option, quote } from "../base/errors.js";
import { validateSessionId, validateUser } from "../base/ids.js";
import type { Lease, LeaseAnswer } from "../base/session.js";
import {
  ALLOWED_LEASE_TTL,
  allowedDuration,
  type Duration,
  invalidDuration,
  LONGEST_TIMER_MS,
  readDuration,
  readLeaseTtl,
  SHORTEST_LEASE_MS,
  writeDuration,
} from "../base/values/measures.js";
import type { Config } from "../config/schema.js";
import type { Store } from "../store/store.js";
import { leaseLost, leaseOver, sessionBusy } from "./problems.js";
import { SeenLease, type TurnLease } from "./seen.js";

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
class AmbientLeases {
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

/**
 * How often a holder checks whether another process has taken the lease from it, in milliseconds. Each check costs one
 * read.
 */
const LOOK_MS = 1_000;

interface Holding {
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
 * A lease that this process holds. Until its release, it is checked each second and renewed after each third of its
 * TTL.
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
   * Gives the lease back. If the lease was adopted, only ends the renewals, because the process that took the lease
   * releases it.
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
   * Fail at once if the same holder has a detached lease that outlasts `waitMs`, because only the holder could release
   * that lease.
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
   * Adopts the lease under which this process runs (`copilotfleet lock SESSION -- COMMAND`), because the process must
   * not wait for that lease. If it does not run under a lease on this session, acquires one.
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
   * Gives up the place in the queue. Also releases the lease, because the store may have granted it to this caller
   * after all.
   */
  async #withdraw(sessionId: string, token: string): Promise<void> {
    const ended = [this.#store.leases.leave(sessionId, token), this.#store.leases.release(sessionId, token)];
    // Ignore failures, because the place in the queue and the lease also expire.
    await Promise.allSettled(ended);
  }
}

function assertTtl(ttlMs: number): void {
  if (ttlMs >= SHORTEST_LEASE_MS && ttlMs <= LONGEST_TIMER_MS) return;
  throw new FleetError("FLEET_USAGE_INVALID", `The TTL is ${writeDuration(ttlMs)}. Allowed: ${ALLOWED_LEASE_TTL}`);
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

/** Options for taking the lease on a session, from a program or a command. */
export interface LockOptions {
  /** The user who will hold the lease: the owner of the session, or a member. */
  user: string;
  /**
   * How long the lease outlives a holder that died: 1s to 24d, such as `300s`, or in milliseconds. Default: `lock.ttl`.
   */
  ttl?: Duration;
  /**
   * How long to wait for other holders and waiters, such as `30s`, or in milliseconds. `0` tries once. Default: `30s`.
   */
  wait?: Duration;
  /** Take the lease at once, even if somebody else holds it. The reason must not be empty. Everybody can see it. */
  steal?: { reason: string };
  /**
   * Take the lease for another process, which gets its token. The lease is not renewed. It lasts for `ttl` unless
   * somebody releases it.
   */
  detached?: true;
  /**
   * Called if the wait takes longer than a second, and again when the lease or the number of earlier waiters changes.
   */
  onWait?: (wait: LeaseWait) => void;
  signal?: AbortSignal;
}

const WAIT_MS = 30_000;
/**
 * How long the reason for `steal` may be, in characters. Tables show it, and every revision of the lease contains it.
 */
const LONGEST_REASON = 500;

/** Checks the options and fills in the defaults. */
export function acquireOptions(sessionId: string, options: LockOptions, { lock }: Config): AcquireOptions {
  const { user, ttl, wait, steal, detached, onWait, signal } = options;
  return {
    sessionId: validateSessionId(sessionId),
    holder: validateUser(user),
    ttlMs: ttl === undefined ? lock.ttlMs : parseLeaseTtl(ttl, option("ttl")),
    waitMs: wait === undefined ? WAIT_MS : parseWait(wait, option("wait")),
    ...(steal === undefined ? {} : { steal: { reason: parseReason(steal.reason, option("reason")) } }),
    ...(detached === undefined ? {} : { detached }),
    ...(onWait === undefined ? {} : { onWait }),
    ...(signal === undefined ? {} : { signal }),
  };
}

/** The TTL in milliseconds. */
export function parseLeaseTtl(given: Duration, name: string): number {
  const ms = readLeaseTtl(asText(given));
  if (ms !== null) return ms;
  throw invalidDuration(given, name, ALLOWED_LEASE_TTL, LONGEST_TIMER_MS);
}

/** The wait in milliseconds; 0 for "0" and "0s". */
export function parseWait(given: Duration, name: string): number {
  const text = asText(given);
  const ms = /^0(?:m?s)?$/.test(text) ? 0 : readDuration(text, LONGEST_TIMER_MS);
  if (ms !== null) return ms;
  throw invalidDuration(given, name, `${allowedDuration(LONGEST_TIMER_MS)}, or 0 to try only once`, LONGEST_TIMER_MS);
}

export function parseReason(text: string, name: string): string {
  if (text.trim() !== "" && text.length <= LONGEST_REASON) return text;
  const why = text.length > LONGEST_REASON ? `is ${text.length} characters long` : "is empty";
  const allowed = `Allowed: why the lease is taken over, in 1 to ${LONGEST_REASON} characters`;
  throw new FleetError("FLEET_USAGE_INVALID", `${name} ${quote(text)} ${why}. ${allowed}.`, {
    suggestions: [`Give a reason such as "maintenance".`],
  });
}

function asText(given: Duration): string {
  return typeof given === "number" ? `${given}ms` : given;
}
