import type { LimitName, UserLimit } from "../../config/limits.js";
import type { Store } from "../../store/ports.js";

/** How long further refusals for the same limit are only counted, in milliseconds. */
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

/** Notes in the audit log that users come near their budgets, and reach their limits. */
export class LimitEvents {
  readonly #events: EventNotes | undefined;
  readonly #store: Pick<Store, "limits">;
  /** The budgets that are noted, by user and limit, each with its period. */
  readonly #near = new Map<string, number>();
  readonly #reached = new Map<string, { atMs: number; more: number }>();

  private constructor(events: EventNotes | undefined, store: Pick<Store, "limits">) {
    this.#events = events;
    this.#store = store;
  }

  /** Those of one fleet. All of its turns share what was noted. */
  static of({ events, store }: LimitEventsContext): LimitEvents {
    let found = OF_STORES.get(store);
    if (found === undefined) {
      found = new LimitEvents(events, store);
      OF_STORES.set(store, found);
    }
    return found;
  }

  /**
   * Notes once per period, whichever process and host comes first, that a budget is nearly used up. Never rejects, because a
   * turn must not fail for want of a warning.
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

  /** Notes that a limit was reached. Further refusals within a minute are only counted. */
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
