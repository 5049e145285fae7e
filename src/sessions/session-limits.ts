import { randomUUID } from "node:crypto";
import { type LimitSource, limitReached } from "../config/limits.js";
import type { Config } from "../config/schema.js";
import type { FleetError } from "../errors.js";
import type { EventLog } from "../model/events/event.js";
import type { SessionRecord } from "../model/session.js";
import { refuseSuspended, type Slot } from "../model/usage/user-limits.js";
import type { Store } from "../store/ports.js";

/** A limit on new sessions of `owner`. `user` is null in the limit for all users together. */
interface Limit {
  owner: string;
  user: string | null;
  most: number;
  source: LimitSource;
}

/** Enforces the limits on the number of sessions, for all processes and hosts that share the store. */
export class SessionLimits {
  readonly #store: Store;
  readonly #events: EventLog;
  readonly #limits: Config["limits"];

  constructor({ store, events, config }: { store: Store; events: EventLog; config: Config }) {
    this.#store = store;
    this.#events = events;
    this.#limits = config.limits;
  }

  /** @throws FleetError `FLEET_LIMIT_REACHED` when the user may have no more sessions; `FLEET_USER_SUSPENDED`. */
  async assertRoom(owner: string): Promise<void> {
    for (const limit of await this.#limitsOf(owner)) {
      const used = await this.#store.sessions.count(limit.user, limit.most);
      if (used >= limit.most) throw await this.#reached(limit);
    }
  }

  /**
   * Records a new session. Before that, takes a slot under each limit, so that sessions that are created at the same
   * moment count each other.
   *
   * @throws FleetError `FLEET_LIMIT_REACHED`; the errors of `SessionStore.create`.
   */
  async add(record: SessionRecord): Promise<void> {
    const { limits } = this.#store;
    const taken: Slot[] = [];
    try {
      for (const limit of await this.#limitsOf(record.owner)) {
        const slot = { user: limit.user, kind: "session", id: `${record.id}~${randomUUID()}` } as const;
        const answer = await limits.take({ ...slot, most: limit.most, perMinute: null });
        if (!answer.granted) throw await this.#reached(limit);
        taken.push(slot);
      }
      await this.#store.sessions.create(record);
    } finally {
      for (const slot of taken) await limits.giveBack(slot, true);
    }
  }

  /** The limits that apply to a new session of the user. */
  async #limitsOf(owner: string): Promise<Limit[]> {
    const record = await this.#store.limits.read(owner);
    refuseSuspended(record);
    const { effectiveLimits } = await import("../usage/limits/limits.js");
    const { limits, sources } = effectiveLimits(this.#limits, record);
    const total = this.#limits.total.sessions;
    return [
      ...(limits.sessions === null ? [] : [{ owner, user: owner, most: limits.sessions, source: sources.sessions }]),
      ...(total === null ? [] : [{ owner, user: null, most: total, source: "default" as const }]),
    ];
  }

  async #reached({ owner, user, most, source }: Limit): Promise<FleetError> {
    const limit = user === null ? "total.sessions" : "sessions";
    const { LimitEvents } = await import("../usage/limits/limit-events.js");
    LimitEvents.of({ events: this.#events, store: this.#store }).reached(owner, limit, most);
    return limitReached(limit, most, { source });
  }
}
