import type { SessionRecord } from "../../model/session.js";
import type { LocalSession } from "./local-session.js";

/** How long a session stays open after a turn, in milliseconds. */
const IDLE_MS = 60_000;
/** How many sessions this process keeps open at most. Each costs as much as an open session of the library. */
const MOST = 200;

/** The use for which a session was opened. Another use needs to open it again. */
export interface Keeper {
  user: string;
  /** Whether the user answers the requests of the agent. */
  interactive?: boolean | undefined;
}

interface Kept {
  open: LocalSession;
  keeper: Keeper;
  timer: NodeJS.Timeout;
}

/**
 * Sessions that stay open for a while after a turn, because opening a session takes longer than a short turn. They are idle
 * sessions with a client, like those of a program that uses the library: no marker and no lease protects them. So anybody may
 * unload, move or delete them, and may stop their servers. The next turn notices that, and loads the session again.
 *
 * A session is kept at most once, because the SDK gives its events to one session object of a connection.
 */
export class KeptSessions {
  /** By session id. The first one was used least recently. */
  readonly #kept = new Map<string, Kept>();

  get size(): number {
    return this.#kept.size;
  }

  /** The session, if it is kept for this use. Leaves it where it is. */
  peek(record: SessionRecord, keeper: Keeper): LocalSession | null {
    const kept = this.#kept.get(record.id);
    // The session may have been deleted, and another one may have its id.
    return kept !== undefined && isFor(kept, record, keeper) ? kept.open : null;
  }

  /** Gives the session to a use that has begun. Closes it if it was kept for another one. */
  async take(record: SessionRecord, keeper: Keeper): Promise<LocalSession | null> {
    const kept = this.#kept.get(record.id);
    if (kept === undefined) return null;
    if (!isFor(kept, record, keeper)) {
      await this.close(record.id);
      return null;
    }
    this.#forget(record.id, kept);
    return kept.open;
  }

  /** Keeps a session after its turn. The use must not have ended, so that no other use of this process comes in between. */
  keep(open: LocalSession, keeper: Keeper): void {
    const { id } = open.record;
    const timer = setTimeout(() => void this.close(id), IDLE_MS).unref();
    this.#kept.set(id, { open, keeper, timer });
    const [oldest] = this.#kept.keys();
    if (this.#kept.size > MOST && oldest !== undefined) void this.close(oldest);
  }

  /** Closes a session if it is kept. Never rejects. */
  async close(id: string): Promise<void> {
    const kept = this.#kept.get(id);
    if (kept === undefined) return;
    this.#forget(id, kept);
    await kept.open.close().catch(() => "the connection ends it");
  }

  async closeAll(): Promise<void> {
    await Promise.all([...this.#kept.keys()].map(async (id) => await this.close(id)));
  }

  #forget(id: string, { timer }: Kept): void {
    clearTimeout(timer);
    this.#kept.delete(id);
  }
}

function isFor({ open, keeper }: Kept, record: SessionRecord, { user, interactive = false }: Keeper): boolean {
  const isSame = open.record.createdAt === record.createdAt;
  return isSame && keeper.user === user && (keeper.interactive ?? false) === interactive;
}
