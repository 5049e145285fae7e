import type { SessionRecord } from "../../model/session.js";
import type { LocalSession } from "./local-session.js";

/** How long a session stays open after a turn, in milliseconds. */
const IDLE_MS = 60_000;
/** How many sessions this process keeps open at most. Each costs as much as an open session of the library. */
const MOST = 200;

/** The user and the options for which a session was opened. A use with other values has to open the session again. */
export interface KeptFor {
  user: string;
  /** Whether the user answers the requests of the agent. */
  interactive?: boolean | undefined;
}

interface Kept {
  open: LocalSession;
  keptFor: KeptFor;
  timer: NodeJS.Timeout;
}

/**
 * Sessions that stay open for a while after a turn, because opening a session takes longer than a short turn. They are idle
 * sessions with a client, like those of a program that uses the library: no marker and no lease protects them. So anybody may
 * unload, move or delete them, and may stop their servers. The next turn notices that, and loads the session again.
 *
 * A session is kept at most once, because the SDK delivers its events to only one session object per connection.
 */
export class KeptSessions {
  /** By session id, the least recently used session first. */
  readonly #kept = new Map<string, Kept>();
  /**
   * By session id, the closings in progress. Until a closing ends, the SDK still delivers events to the closed object.
   */
  readonly #closing = new Map<string, Promise<void>>();
  #isClosed = false;

  get size(): number {
    return this.#kept.size;
  }

  /** Returns the session if it is kept for this use, otherwise null. The session stays kept. */
  peek(record: SessionRecord, keptFor: KeptFor): LocalSession | null {
    const kept = this.#kept.get(record.id);
    // The session may have been deleted, and another one may have its id.
    return kept !== undefined && isFor(kept, record, keptFor) ? kept.open : null;
  }

  /**
   * Returns a kept session for a use that has begun, and no longer keeps it; null if there is none. Closes a session
   * kept for a different use.
   */
  async take(record: SessionRecord, keptFor: KeptFor): Promise<LocalSession | null> {
    await this.#closing.get(record.id);
    const kept = this.#kept.get(record.id);
    if (kept === undefined) return null;
    if (!isFor(kept, record, keptFor)) {
      await this.close(record.id);
      return null;
    }
    this.#forget(record.id, kept);
    return kept.open;
  }

  /** Keeps a session open after its turn. Call it before the use ends, so that no other use begins in between. */
  async keep(open: LocalSession, keptFor: KeptFor): Promise<void> {
    const { id } = open.record;
    if (this.#isClosed) return await this.#close(open);
    const timer = setTimeout(() => void this.close(id), IDLE_MS).unref();
    this.#kept.set(id, { open, keptFor, timer });
    const [oldest] = this.#kept.keys();
    if (this.#kept.size > MOST && oldest !== undefined) void this.close(oldest);
  }

  /** Closes a session if it is kept. Never rejects. */
  async close(id: string): Promise<void> {
    const kept = this.#kept.get(id);
    if (kept !== undefined) {
      this.#forget(id, kept);
      this.#closing.set(
        id,
        this.#close(kept.open).then(() => void this.#closing.delete(id)),
      );
    }
    await this.#closing.get(id);
  }

  async #close(open: LocalSession): Promise<void> {
    await open.close().catch(() => "the connection ends it");
  }

  /** Closes all sessions. After this call, {@link keep} closes a session instead of keeping it. */
  async closeAll(): Promise<void> {
    this.#isClosed = true;
    await Promise.all([...this.#kept.keys()].map(async (id) => await this.close(id)));
  }

  #forget(id: string, { timer }: Kept): void {
    clearTimeout(timer);
    this.#kept.delete(id);
  }
}

function isFor({ open, keptFor }: Kept, record: SessionRecord, { user, interactive = false }: KeptFor): boolean {
  const isSame = open.record.createdAt === record.createdAt;
  return isSame && keptFor.user === user && (keptFor.interactive ?? false) === interactive;
}
