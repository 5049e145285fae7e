import { limitReached } from "../config/limits.js";
import type { Config } from "../config/schema.js";
import type { FleetError } from "../errors.js";
import type { SessionRecord } from "../model/session.js";
import type { Store } from "../store/ports.js";

/**
 * Enforces the limits on the number of sessions, for all sessions that this process records. If several processes create
 * sessions at the same moment, they may together exceed a limit, because they do not see each other.
 */
export class SessionLimits {
  readonly #store: Store;
  readonly #limits: Config["limits"];
  /** The promises of the records that are being written, by owner. */
  readonly #pending = new Map<string, Set<Promise<void>>>();
  #written = 0;

  constructor({ store, config }: { store: Store; config: Config }) {
    this.#store = store;
    this.#limits = config.limits;
  }

  /** @throws FleetError `FLEET_LIMIT_REACHED` when the user may have no more sessions. */
  async assertRoom(owner: string): Promise<void> {
    const reached = this.#reached(await this.#count(owner), 0);
    if (reached !== null) throw reached;
  }

  /** Records a new session. @throws FleetError `FLEET_LIMIT_REACHED`; as `SessionStore.create`. */
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

  /** Waits for room, and starts to write the record. Resolves with the promise of the write. */
  async #begin(record: SessionRecord): Promise<{ done: Promise<void> }> {
    const { owner } = record;
    for (;;) {
      const written = this.#written;
      const counts = await this.#count(owner);
      // A record that was written during the count may be neither counted nor pending. So count again.
      if (written !== this.#written) continue;
      // Do not await anything before the record is pending, because another call could come in between.
      const pending = this.#pendingOf(owner);
      const reached = this.#reached(counts, pending.size);
      if (reached === null) {
        const done = this.#store.sessions.create(record);
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

  /**
   * Counts the sessions of the owner and of all users. If there is no limit, the count is 0, because counting would
   * cost time for nothing.
   */
  async #count(owner: string): Promise<Counts> {
    const { default: own, total } = this.#limits;
    return {
      own: own.sessions === null ? 0 : await this.#store.sessions.count(owner, own.sessions),
      total: total.sessions === null ? 0 : await this.#store.sessions.count(null, total.sessions),
    };
  }

  /** @param pending how many other sessions of the user are being recorded */
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
