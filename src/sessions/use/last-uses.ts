import { isFleetError } from "../../base/errors.js";
import { titleOf } from "../../base/ids.js";
import type { SessionRecord } from "../../base/session.js";
import type { Store } from "../../store/store.js";

/** How long to delay the write of a turn, so that later turns can share it, in milliseconds. */
const DELAY_MS = 2_000;
/** A turn waits only if the last recorded use of its session is at most this old, in milliseconds. */
const RECENT_MS = 60_000;

/** Turns of one session that share a write. */
interface Batch {
  readonly record: SessionRecord;
  /** The title for a session without one; null if this is not its first turn. */
  title: string | null;
  turns: number;
  /** When the last of them ended (Unix time in milliseconds). */
  endedMs: number;
  write(): void;
  /** Resolves with the record after the write; with null if the session was deleted first. */
  readonly written: Promise<SessionRecord | null>;
}

/**
 * Records the turns that end in this process. A write costs the front door as much as the rest of a turn. So the turns
 * of a session that end within two seconds share one write. If the process is killed before the write, the count of
 * these turns is lost. gc still notices these turns, because it also checks when the session's history was last
 * written.
 *
 * Two kinds of turns are written at once. One is the first turn of a session, because the recorded count decides
 * whether the session may be created again. The other is a turn after a longer pause, because gc cannot see the history
 * of a session whose folder a client chose.
 */
export class LastUses {
  readonly #store: Pick<Store, "sessions">;
  /** By session id, the batch that the session's next turn joins. */
  readonly #waiting = new Map<string, Batch>();
  /** All batches that are not written. */
  readonly #unwritten = new Set<Batch>();

  constructor(store: Pick<Store, "sessions">) {
    this.#store = store;
  }

  /**
   * Counts a turn that has just ended. Resolves with the new record once the turn is recorded; with null if the session
   * was deleted first.
   *
   * @param record the session's record, as this process read it last
   * @param prompt the turn's prompt, which becomes the title of a session without a title if this is its first turn
   */
  async note(record: SessionRecord, prompt = ""): Promise<SessionRecord | null> {
    const waiting = this.#waiting.get(record.id);
    // The session may have been deleted, and a new session may have its id now.
    const batch = waiting?.record.createdAt === record.createdAt ? waiting : this.#begin(record);
    if (record.turns === 0 && record.title === undefined) batch.title ??= titleOf(prompt);
    batch.turns += 1;
    batch.endedMs = Date.now();
    const isRecent = batch.endedMs - Date.parse(record.lastUsedAt) <= RECENT_MS;
    if (record.turns === 0 || !isRecent) batch.write();
    return await batch.written;
  }

  /**
   * Writes the waiting turns of one session or of all sessions. Never rejects. If the write fails, {@link note}
   * rejects.
   */
  async flush(sessionId?: string): Promise<void> {
    const batches = [...this.#unwritten].filter(({ record }) => sessionId === undefined || record.id === sessionId);
    for (const batch of batches) batch.write();
    await Promise.allSettled(batches.map(async ({ written }) => await written));
  }

  #begin(record: SessionRecord): Batch {
    let write = (): void => undefined;
    const due = new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, DELAY_MS);
      write = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    const batch: Batch = {
      record,
      title: null,
      turns: 0,
      endedMs: 0,
      write,
      written: due.then(async () => await this.#write(batch)),
    };
    this.#waiting.set(record.id, batch);
    this.#unwritten.add(batch);
    return batch;
  }

  async #write(batch: Batch): Promise<SessionRecord | null> {
    const { id, createdAt } = batch.record;
    if (this.#waiting.get(id) === batch) this.#waiting.delete(id);
    const { turns, title, endedMs } = batch;
    try {
      return await this.#store.sessions.update(id, (draft) => {
        if (draft.createdAt !== createdAt) return null;
        if (title !== null && draft.turns === 0) draft.title ??= title;
        draft.turns += turns;
        const isNewer = Date.parse(draft.lastUsedAt) > endedMs;
        if (!isNewer) draft.lastUsedAt = new Date(endedMs).toISOString();
        return draft;
      });
    } catch (error) {
      if (isFleetError(error, "FLEET_SESSION_NOT_FOUND")) return null;
      throw error;
    } finally {
      this.#unwritten.delete(batch);
    }
  }
}
