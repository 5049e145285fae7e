import { randomBytes } from "node:crypto";
import { limitReached, type UserLimit } from "../../config/limits.js";
import type { Config } from "../../config/schema.js";
import { refuseSuspended, type SlotKind, type UserLimitRecord } from "../../model/usage/user-limits.js";
import type { Store } from "../../store/ports.js";
import { BUDGETS, periodOf, SOFT_SHARE } from "./budgets.js";
import { LimitEvents, type LimitEventsContext } from "./limit-events.js";
import { type EffectiveLimits, effectiveLimits } from "./limits.js";

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
 * Refuses a model request of a user who is suspended, or whose budgets are used up. A turn that began within a budget goes on. It may exceed the
 * budget by as much again, and by at least `OVERRUN`, because an agent could otherwise go on for ever.
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
