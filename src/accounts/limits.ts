import { randomBytes } from "node:crypto";
import { refuseSuspended, type SlotKind, type UserLimitRecord } from "../base/usage.js";
import {
  type LimitName,
  type LimitSource,
  limitReached,
  USER_LIMITS,
  type UserLimit,
  type UserLimits,
} from "../base/user-limits.js";
import type { Config } from "../config/schema.js";
import type { Store } from "../store/store.js";

/** The limits of one user, and where each comes from. */
export interface EffectiveLimits {
  limits: UserLimits;
  sources: Readonly<Record<UserLimit, LimitSource>>;
}

/**
 * A limit to set. `unlimited` or null removes it for this user. `default` restores the limit of the groups or of all
 * users.
 */
export type LimitValue = number | null | "unlimited" | "default";

/** The limits of one user, how much of each is used, and where each comes from. */
export interface LimitView {
  user: string;
  /** The groups in `limits.groups` of which the user was a member at the last sign-on that named groups. */
  groups: readonly string[];
  /** A limit of null means unlimited. */
  limits: UserLimits;
  /** Null if the use of this limit is not counted. */
  used: Readonly<Record<UserLimit, number | null>>;
  sources: Readonly<Record<UserLimit, LimitSource>>;
}

/**
 * The limits that apply to a user. For each limit, the user's own value takes precedence over the values of the user's
 * groups, and these take precedence over the configured value for all users. If several groups have a value, the
 * highest one applies.
 */
export function effectiveLimits(
  { default: everybody, groups }: Config["limits"],
  record: UserLimitRecord | null,
): EffectiveLimits {
  const limits: Partial<Record<UserLimit, number | null>> = {};
  const sources: Partial<Record<UserLimit, LimitSource>> = {};
  for (const name of USER_LIMITS) {
    const { max, source } = ownLimit(name, record) ??
      groupLimit(name, groups, record) ?? { max: everybody[name], source: "default" };
    limits[name] = max;
    sources[name] = source;
  }
  return { limits, sources } as EffectiveLimits;
}

interface Found {
  max: number | null;
  source: LimitSource;
}

function ownLimit(name: UserLimit, record: UserLimitRecord | null): Found | null {
  const max = record?.limits[name];
  return max === undefined ? null : { max, source: "user" };
}

function groupLimit(name: UserLimit, groups: Config["limits"]["groups"], record: UserLimitRecord | null): Found | null {
  let found: Found | null = null;
  for (const group of record?.groups ?? []) {
    const max = Object.hasOwn(groups, group) ? groups[group]?.[name] : undefined;
    if (max === undefined) continue;
    const isHigher = found === null || (found.max !== null && (max === null || max > found.max));
    if (isHigher) found = { max, source: `group:${group}` };
  }
  return found;
}

export type Period = "day" | "month";

/** The limits on model tokens per day and per month. */
export const BUDGETS = [
  { limit: "tokensPerDay", period: "day" },
  { limit: "tokensPerMonth", period: "month" },
] as const satisfies readonly { limit: UserLimit; period: Period }[];

/** The fleet warns once this share of a budget is used. */
export const SOFT_SHARE = 0.8;

/** The UTC day or month that contains `now`: its beginning and its end, in milliseconds since the epoch. */
export function periodOf(period: Period, now: number): { from: number; to: number } {
  const date = new Date(now);
  const [year, month, day] = [date.getUTCFullYear(), date.getUTCMonth(), date.getUTCDate()];
  if (period === "day") return { from: Date.UTC(year, month, day), to: Date.UTC(year, month, day + 1) };
  return { from: Date.UTC(year, month), to: Date.UTC(year, month + 1) };
}

export interface AllowanceContext extends LimitEventsContext {
  store: Pick<Store, "limits" | "usage">;
  config: Pick<Config, "limits">;
}

/** One prompt that counts toward the limits of its user. */
export interface Charge {
  /** Call it if the prompt was refused or never began, so that it does not count. */
  refund(): void;
}

/**
 * The part of a user's limits that one turn takes up: one of the concurrent turns, and one of the turns per minute. A
 * turn of the front door may have further prompts, each of which also counts toward the turns per minute.
 */
export class TurnAllowance {
  readonly #context: AllowanceContext;
  readonly #user: string;
  readonly #limits: EffectiveLimits;
  /** The id of the slot by which the store counts this turn. */
  readonly #id: string;
  /** Whether the turn per minute that {@link take} counted is still unused. The first prompt uses it. */
  #isSpare = true;
  #isOver = false;
  /** When the budgets were checked last, by `performance.now()`. */
  #checkedMs = Number.NEGATIVE_INFINITY;

  private constructor(context: AllowanceContext, user: string, limits: EffectiveLimits) {
    this.#context = context;
    this.#user = user;
    this.#limits = limits;
    this.#id = newId();
  }

  /**
   * Takes one turn from the user's limits. Null if no limit on turns or tokens applies.
   *
   * @throws FleetError `FLEET_LIMIT_REACHED` when one of the limits is used up; the errors of the store.
   */
  static async take(
    context: AllowanceContext,
    user: string,
    record: UserLimitRecord | null,
  ): Promise<TurnAllowance | null> {
    const limits = effectiveLimits(context.config.limits, record);
    const { turnsPerMinute, concurrentTurns, tokensPerDay, tokensPerMonth } = limits.limits;
    if ([turnsPerMinute, concurrentTurns, tokensPerDay, tokensPerMonth].every((max) => max === null)) return null;
    const allowance = new TurnAllowance(context, user, limits);
    await allowance.#checkBudgets();
    await allowance.#take("turn", allowance.#id);
    return allowance;
  }

  /** Counts a prompt, right before it is sent. @throws like {@link take} */
  async charge(): Promise<Charge> {
    // If this turn had to wait for other turns, those may have used up the budgets.
    if (performance.now() - this.#checkedMs > FRESH_MS) await this.#checkBudgets();
    if (this.#isSpare) {
      this.#isSpare = false;
      return { refund: () => this.#refundFirst() };
    }
    const id = newId();
    await this.#take("prompt", id);
    return { refund: () => this.#giveBack("prompt", id, false) };
  }

  /** Ends the turn. Does not wait for the store. */
  end(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#giveBack("turn", this.#id, !this.#isSpare);
  }

  get #events(): LimitEvents {
    return LimitEvents.of(this.#context);
  }

  #refundFirst(): void {
    if (this.#isOver) this.#giveBack("turn", this.#id, false);
    else this.#isSpare = true;
  }

  #giveBack(kind: SlotKind, id: string, hasBegun: boolean): void {
    const { concurrentTurns, turnsPerMinute } = this.#limits.limits;
    if (concurrentTurns === null && turnsPerMinute === null) return;
    // Do not wait for the store. If the call fails, the slot expires.
    void this.#context.store.limits.giveBack({ user: this.#user, kind, id }, hasBegun).catch(() => "it expires");
  }

  async #take(kind: "turn" | "prompt", id: string): Promise<void> {
    const { concurrentTurns, turnsPerMinute } = this.#limits.limits;
    if (concurrentTurns === null && turnsPerMinute === null) return;
    const most = kind === "turn" ? concurrentTurns : null;
    const answer = await this.#context.store.limits.take({
      user: this.#user,
      kind,
      id,
      most,
      perMinute: turnsPerMinute,
    });
    if (answer.granted) return;
    const limit = answer.reached === "most" ? "concurrentTurns" : "turnsPerMinute";
    throw this.#reached(limit, answer.used, answer.retryAfterMs ?? AGAIN_MS);
  }

  async #checkBudgets(): Promise<void> {
    this.#checkedMs = performance.now();
    for (const { limit, period } of BUDGETS) {
      const max = this.#limits.limits[limit];
      if (max === null) continue;
      const now = Date.now();
      const { from, to } = periodOf(period, now);
      const used = await this.#context.store.usage.tokensSince(this.#user, from);
      if (used >= max) throw this.#reached(limit, used, to - now);
      if (used >= max * SOFT_SHARE) await this.#events.near(this.#user, { limit, max, used, from });
    }
  }

  #reached(limit: UserLimit, used: number, retryAfterMs: number): Error {
    const max = this.#limits.limits[limit] ?? 0;
    this.#events.reached(this.#user, limit, max);
    return limitReached(limit, max, { source: this.#limits.sources[limit], used, retryAfterMs });
  }
}

/** A turn may exceed its budget by the budget again, or by this many tokens if that is more. */
const OVERRUN = 1_000_000;

/**
 * Refuses a model request of a user who is suspended, or whose budgets are used up. A turn that began within a budget
 * goes on. It may exceed the budget by as much again, and by at least `OVERRUN`, because an agent could otherwise go on
 * for ever.
 *
 * @param underWay an estimate of the tokens that the user's earlier requests will use, and that do not count so far
 * @throws FleetError `FLEET_LIMIT_REACHED`; `FLEET_USER_SUSPENDED`; the errors of the store.
 */
export async function assertBudget(
  context: AllowanceContext,
  user: string,
  isTurn: boolean,
  underWay: number,
): Promise<void> {
  const record = await context.store.limits.read(user);
  refuseSuspended(record);
  const { limits, sources } = effectiveLimits(context.config.limits, record);
  for (const { limit, period } of BUDGETS) {
    const max = limits[limit];
    if (max === null) continue;
    const now = Date.now();
    const { from, to } = periodOf(period, now);
    const used = underWay + (await context.store.usage.tokensSince(user, from));
    if (used < max + (isTurn ? Math.max(max, OVERRUN) : 0)) continue;
    LimitEvents.of(context).reached(user, limit, max);
    throw limitReached(limit, max, { source: sources[limit], used, retryAfterMs: to - now });
  }
}

/** How long a check of the budgets is valid, in milliseconds. A turn that need not wait begins within this time. */
const FRESH_MS = 50;

/**
 * After how long to try again when too many turns run, in milliseconds. It is a guess: nobody knows when a turn ends.
 */
const AGAIN_MS = 1_000;

function newId(): string {
  return randomBytes(9).toString("base64url");
}

/**
 * For this long after an event about a reached limit, in milliseconds, more refusals of the same user by this limit are
 * only counted.
 */
const AGGREGATED_MS = 60_000;

interface Near {
  limit: UserLimit;
  max: number;
  used: number;
  /** The beginning of the period of the budget, in milliseconds since the epoch. */
  from: number;
}

/** The audit log. */
export interface EventNotes {
  note(event: {
    type: "limit.near" | "limit.reached";
    user: string;
    reason: string;
    detail: string;
    outcome?: string;
  }): void;
}

export interface LimitEventsContext {
  events?: EventNotes;
  store: Pick<Store, "limits">;
}

const OF_STORES = new WeakMap<object, LimitEvents>();

/** Writes to the audit log when users come near their budgets or reach their limits. */
export class LimitEvents {
  readonly #events: EventNotes | undefined;
  readonly #store: Pick<Store, "limits">;
  /** By user and limit, the period for which the audit log already has an event, as `from` of {@link Near}. */
  readonly #near = new Map<string, number>();
  readonly #reached = new Map<string, { atMs: number; more: number }>();

  private constructor(events: EventNotes | undefined, store: Pick<Store, "limits">) {
    this.#events = events;
    this.#store = store;
  }

  /** The object for the fleet with this store. All turns of the fleet share it, so that no event is repeated. */
  static of({ events, store }: LimitEventsContext): LimitEvents {
    let found = OF_STORES.get(store);
    if (found === undefined) {
      found = new LimitEvents(events, store);
      OF_STORES.set(store, found);
    }
    return found;
  }

  /**
   * Writes an event that a budget is nearly used up. In each period, only the first process that notices this, among
   * those of all hosts, writes the event. Never rejects, because a failed warning must not make a turn fail.
   */
  async near(user: string, { limit, max, used, from }: Near): Promise<void> {
    const key = `${user} ${limit}`;
    if (this.#near.get(key) === from) return;
    this.#near.set(key, from);
    try {
      if (!(await this.#store.limits.isFirst(user, limit, from))) return;
    } catch {
      this.#near.delete(key); // the next turn tries again
      return;
    }
    const detail = `${limit}: ${used} of ${max} used`;
    this.#events?.note({ type: "limit.near", user, reason: limit, detail });
  }

  /** Writes an event that a limit was reached. Further refusals within a minute are only counted. */
  reached(user: string, limit: LimitName, max: number): void {
    const key = `${user} ${limit}`;
    const now = performance.now();
    const last = this.#reached.get(key);
    if (last !== undefined && now - last.atMs < AGGREGATED_MS) {
      last.more++;
      return;
    }
    if (this.#reached.size > 10_000) this.#reached.clear();
    this.#reached.set(key, { atMs: now, more: 0 });
    const more = last === undefined || last.more === 0 ? "" : `, and ${last.more} times more since the last such event`;
    this.#events?.note({
      type: "limit.reached",
      outcome: "refused",
      user,
      reason: limit,
      detail: `at most ${max}${more}`,
    });
  }
}
