import { limitReached } from "../config/limits.js";
import type { Config } from "../config/schema.js";
import type { FleetError } from "../errors.js";
import type { SessionRecord, Store } from "../store/store.js";

/**
 * The limits on the number of sessions, for all that this process records. Processes that create sessions at the same moment do
 * not see each other, so the limits may be exceeded by as many.
 */
export class SessionLimits {
  readonly #store: Store;
  readonly #limits: Config["limits"];
  /** The records that are being written, by their owners. */
  readonly #pending = new Map<string, Set<Promise<void>>>();
  #written = 0;

  constructor({ store, config }: { store: Store; config: Config }) {
    this.#store = store;
    this.#limits = config.limits;
  }

  /** @throws FleetError `FLEET_LIMIT_REACHED` when the user can have no more sessions. */
  async assertRoom(owner: string): Promise<void> {
    const reached = this.#reached(await this.#count(owner), 0);
    if (reached !== null) throw reached;
  }

  /** Records a new session. @throws FleetError `FLEET_LIMIT_REACHED`; as `Store.createSession`. */
  async add(record: SessionRecord): Promise<void> {
    const work = await this.#begin(record);
    try {
      await work.done;
    } finally {
      const pending = this.#pendingOf(record.owner);
      pending.delete(work.done);
      if (pending.size === 0) this.#pending.delete(record.owner);
      this.#written++;
    }
  }

  /** Resolves when the record is being written, with the end of that. */
  async #begin(record: SessionRecord): Promise<{ done: Promise<void> }> {
    const { owner } = record;
    for (;;) {
      const written = this.#written;
      const counts = await this.#count(owner);
      // From here on nothing is waited for until the record is pending: others come in between otherwise.
      if (written !== this.#written) continue; // one that was written during the count is neither in it nor pending
      const pending = this.#pendingOf(owner);
      const reached = this.#reached(counts, pending.size);
      if (reached === null) {
        const done = this.#store.createSession(record);
        this.#pending.set(owner, pending.add(done));
        return { done };
      }
      if (pending.size === 0) throw reached;
      await Promise.race([...pending].map(async (each) => await each.catch(() => "it left room")));
    }
  }

  #pendingOf(owner: string): Set<Promise<void>> {
    return this.#pending.get(owner) ?? new Set();
  }

  /** What is not limited is not counted. */
  async #count(owner: string): Promise<Counts> {
    const { default: own, total } = this.#limits;
    return {
      own: own.sessions === null ? 0 : await this.#store.countSessions(owner, own.sessions),
      total: total.sessions === null ? 0 : await this.#store.countSessions(null, total.sessions),
    };
  }

  /** @param pending how many of the user are about to be recorded besides */
  #reached(counts: Counts, pending: number): FleetError | null {
    const { default: own, total } = this.#limits;
    if (own.sessions !== null && counts.own + pending >= own.sessions) return limitReached("sessions", own.sessions);
    if (total.sessions !== null && counts.total + pending >= total.sessions)
      return limitReached("total.sessions", total.sessions);
    return null;
  }
}

interface Counts {
  own: number;
  total: number;
}
