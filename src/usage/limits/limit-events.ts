import type { LimitName, UserLimit } from "../../config/limits.js";
import type { Store } from "../../store/ports.js";

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
