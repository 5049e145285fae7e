import type { CopilotSession, MessageOptions, SessionEvent } from "@github/copilot-sdk";
import { FleetError, quote } from "../base/errors.js";
import type { HostRecord } from "../base/host.js";
import { newSessionId } from "../base/ids.js";
import type { SessionRecord, TurnUsage } from "../base/session.js";
import type { TurnReply } from "../runtime/client/turn.js";
import type { SessionsContext } from "./problems.js";
import type { Sessions } from "./sessions.js";
import { type Histories, KeyedTurns, type TurnJournal } from "./use/keyed.js";
import { assertModel } from "./use/load.js";
import { LocalSession, type OpenOptions } from "./use/local-session.js";
import { type OpenSession, ownUse, type Prompt, type SendOptions, type Used } from "./use/open-session.js";
import { heldPermit } from "./use/permit.js";
import { TurnWatch } from "./use/turn-records.js";
import { useSession } from "./use/use-session.js";
import type { SessionFinder, SessionView } from "./view.js";

interface ResumeOptions extends OpenOptions {
  /** How long to wait for room in the server's memory, in milliseconds. Default: 30,000. */
  waitMs?: number | undefined;
  signal: AbortSignal;
}

export interface CreateOptions extends ResumeOptions {
  /** Default: a random id. */
  id?: string | undefined;
  purpose?: string | undefined;
  title?: string | undefined;
  model?: string | undefined;
  /** Names or patterns of the session's tools, whenever it is opened. Default: the tools in the configuration. */
  tools?: readonly string[] | undefined;
  /**
   * How long after its last use gc may delete the session, in milliseconds. Default: the TTL that is configured when gc
   * runs.
   */
  ttlMs?: number | undefined;
  /**
   * Other users who may use the session. With a list, even an empty one, the session is collaborative. Default: it is
   * private.
   */
  members?: readonly string[] | undefined;
  /** Whether to delete the session when its use ends. */
  ephemeral?: boolean | undefined;
  /** Whether to fail, before anything is started, if no model can answer. Other hosts ignore this option. */
  needsModel?: boolean | undefined;
}

interface UseSessionOptions extends ResumeOptions, SendOptions {
  /** The idempotency key: all calls of this user with the same key share one turn. */
  key?: string | undefined;
  /** The attachments of the prompt, in the form of the SDK's `send`. */
  attachments?: MessageOptions["attachments"];
  /** Whether to keep the session open for its next turn. Not for ephemeral or remote sessions, nor with `session`. */
  keep?: boolean | undefined;
  signal: AbortSignal;
}

interface TurnResult {
  reply: TurnReply;
  /** The turn's id, which is the id of its prompt in the session's history. */
  turn: string;
  /** Null if another process ran the turn and died before it recorded the usage. */
  usage: TurnUsage | null;
  /** The session after the turn. Null if another call ran the turn, or if the session is kept open. */
  session: SessionView | null;
}

/**
 * Creates and opens sessions on other hosts. `RemoteSessions` in `hosts/sessions/` implements this, because `sessions/`
 * may not call other hosts itself.
 */
export interface SessionsElsewhere {
  create(host: HostRecord, options: CreateOptions): Promise<OpenSession>;
  open(
    record: SessionRecord,
    host: HostRecord,
    options: ResumeOptions & Pick<SendOptions, "lease" | "tokenId">,
  ): Promise<OpenSession>;
}

/**
 * The sessions that this process has open, on this host or on others. `SessionGroup` in `fleet/` creates and uses
 * sessions through this class. `SessionFinder` finds the host of a session. On this host, {@link useSession} and
 * {@link LocalSession} then do the work; on another host, {@link SessionsElsewhere}.
 */
export class OpenSessions {
  readonly #sessions: Sessions;
  readonly #finder: SessionFinder;
  readonly #elsewhere: SessionsElsewhere;
  readonly #open = new Map<string, OpenSession>();
  readonly #keyed: KeyedTurns;
  /** Null until the first session is kept open. */
  #kept: KeptSessions | null = null;

  constructor(sessions: Sessions, finder: SessionFinder, elsewhere: SessionsElsewhere, histories: Histories) {
    const { store, warn } = sessions.context;
    this.#keyed = new KeyedTurns({ store: store.keyedTurns, histories, warn });
    this.#sessions = sessions;
    this.#finder = finder;
    this.#elsewhere = elsewhere;
  }

  get #context(): SessionsContext {
    return this.#sessions.context;
  }

  /**
   * Creates a session on the host that its user is placed on.
   *
   * @throws FleetError `FLEET_LIMIT_REACHED`, `FLEET_MODEL_UNCONFIGURED`; the errors of `Sessions.recordNew`.
   */
  async create(options: CreateOptions): Promise<CopilotSession> {
    const where = await this.#context.directory.place(options.user);
    return this.#keep(where.here ? await this.#createHere(options) : await this.#elsewhere.create(where.host, options));
  }

  async #createHere(options: CreateOptions): Promise<LocalSession> {
    const { directory, provider } = this.#context;
    const { user, signal } = options;
    const id = options.id ?? newSessionId();
    // Before anything is started, refuse a model that cannot be used.
    await provider.check();
    if (options.needsModel === true) await assertModel(this.#context, user);
    const ephemeralUse = options.ephemeral === true ? ownUse(directory) : undefined;
    const record = await this.#sessions.recordNew({ ...options, id, owner: user, ephemeralUse }, { signal });
    try {
      return await this.#openHere(record, options, true);
    } catch (error) {
      await this.#sessions.discard(record);
      throw error;
    }
  }

  /**
   * Opens an existing session, even if its server was stopped or killed. The user must be its owner or a member.
   *
   * @throws FleetError `FLEET_SESSION_NOT_FOUND` when it does not exist or belongs to somebody else;
   * `FLEET_SESSION_LOST` when it had turns and its history is gone; `FLEET_LIMIT_REACHED`, `FLEET_HOST_AWAY`.
   */
  async resume(id: string, options: ResumeOptions): Promise<CopilotSession> {
    const open = await this.#finder.whereItIs(id, options.user, async (record, host) =>
      host === null ? await this.#openHere(record, options) : await this.#elsewhere.open(record, host, options),
    );
    await open.claim();
    return this.#keep(open);
  }

  async #openHere(record: SessionRecord, options: ResumeOptions, isNew = false): Promise<LocalSession> {
    // Before anything is started, refuse a model that cannot be used.
    await this.#context.provider.check();
    // Close a kept session first, because the SDK sends a session's events to only one object per connection.
    await this.#kept?.close(record.id);
    await using use = await useSession(this.#context, { ...options, record, isTurn: false });
    return await LocalSession.open(this.#sessions, use, options, isNew);
  }

  /** Runs a turn in a session that this process has open. @throws FleetError as `OpenSession.send`. */
  async send(sessionId: string, prompt: string, options: SendOptions): Promise<TurnReply> {
    return await this.#opened(sessionId).send(prompt, options);
  }

  /**
   * Opens a session, sends a prompt and leaves the session. Resolves with the reply. Holds the lease of a collaborative
   * session throughout, so that each member gets the reply to their own prompt. With a key, uses {@link KeyedTurns}.
   */
  async use(id: string, prompt: string, options: UseSessionOptions): Promise<TurnResult> {
    const watch = new TurnWatch();
    const { key, user, timeoutMs, attachments, signal } = options;
    const onEvent = (event: SessionEvent) => {
      watch.push(event);
      options.onEvent?.(event);
    };
    const watched = { ...options, onEvent };
    if (key === undefined) {
      const used = await this.#use(id, prompt, watched);
      if (used === null) throw new Error("Without a key, there is no other turn.");
      return { ...used, turn: watch.turn ?? "", usage: watch.usage };
    }
    const asked = { user, key, sessionId: id, prompt, timeoutMs, attachments, onEvent, signal };
    return await this.#keyed.use(asked, async (journal) => {
      const used = await this.#use(id, prompt, watched, journal);
      return used && { ...used, turn: watch.turn ?? "", usage: journal.hasSent ? watch.usage : null };
    });
  }

  /** Runs the turn on the host that has the session. Resolves with null if the journal shows that the turn is over. */
  async #use(id: string, prompt: string, options: UseSessionOptions, journal?: TurnJournal): Promise<Used | null> {
    return await this.#finder.whereItIs(id, options.user, async (record, host) =>
      host === null
        ? await this.#useHere(record, prompt, options, journal)
        : await this.#useElsewhere(host, record, prompt, options, journal),
    );
  }

  async #useHere(
    record: SessionRecord,
    prompt: string,
    options: UseSessionOptions,
    journal: TurnJournal | undefined,
  ): Promise<Used | null> {
    await this.#context.provider.check();
    // A call with its own settings, such as a GitHub token, neither takes a session that is kept open nor keeps one.
    const isPlain = options.session === undefined;
    const at = isPlain ? this.#kept?.peek(record, options)?.server : undefined;
    await using use = await useSession(this.#context, { ...options, record, isTurn: true, mayMove: true, at });
    if ((await journal?.isOver(use.record)) === true) return null;
    const isKept = options.keep === true && isPlain && use.record.persistence === "persistent";
    if (!isPlain) await this.#kept?.close(record.id);
    const kept = isPlain ? await this.#kept?.take(use.record, options) : null;
    const open = kept ?? (await LocalSession.open(this.#sessions, use, { ...options, isKept }));
    const take = async (turn: SendOptions) => await open.turn(use, messageOf(prompt, options), turn);
    const run = async () => await taking(take, open, options, journal);
    const used = isKept ? await this.#keeping(open, options, run) : await open.once(run);
    await use.endOrWarn();
    return used;
  }

  /** Runs a turn, and keeps the session open if the turn succeeds. */
  async #keeping(open: LocalSession, options: UseSessionOptions, run: () => Promise<TurnReply>): Promise<Used> {
    try {
      const reply = await run();
      this.#kept ??= new KeptSessions();
      await this.#kept.keep(open, options);
      return { reply, session: null };
    } catch (error) {
      await open.close();
      throw error;
    }
  }

  /** Closes each of these sessions that is kept open. Call it before sessions are deleted or their members change. */
  async closeKept(ids: readonly string[]): Promise<void> {
    for (const id of ids) await this.#kept?.close(id);
  }

  async #useElsewhere(
    host: HostRecord,
    record: SessionRecord,
    prompt: string,
    options: UseSessionOptions,
    journal: TurnJournal | undefined,
  ): Promise<Used | null> {
    // The journal must be read while no other turn can begin. The other host ensures this only once the prompt is sent.
    await using permit = journal === undefined ? null : await heldPermit(this.#context, record, options);
    if ((await journal?.isOver(permit?.record ?? record)) === true) return null;
    const under = permit === null ? options : { ...options, lease: permit.lease };
    const open = await this.#elsewhere.open(record, host, under);
    const take = async (turn: SendOptions) => await open.send(messageOf(prompt, options), turn);
    return await open.once(async () => await taking(take, open, under, journal));
  }

  /** Leaves a session that this process has open. Resolves with its view afterwards. */
  async leave(sessionId: string, options: { park?: boolean } = {}): Promise<SessionView> {
    const open = this.#opened(sessionId);
    this.#open.delete(sessionId);
    return await open.leave(options);
  }

  /** Leaves all sessions, and deletes ephemeral ones. @throws the first error, after it has left all sessions. */
  async close(): Promise<void> {
    const open = [...this.#open.values()];
    this.#open.clear();
    this.#kept ??= new KeptSessions();
    await this.#kept.closeAll();
    const results = await Promise.allSettled(open.map(async (each) => await each.close()));
    const failed = results.find((result) => result.status === "rejected");
    if (failed !== undefined) throw failed.reason;
  }

  #keep(open: OpenSession): CopilotSession {
    this.#open.set(open.record.id, open);
    return open.session;
  }

  #opened(sessionId: string): OpenSession {
    const open = this.#open.get(sessionId);
    if (open !== undefined) return open;
    throw new FleetError(
      "FLEET_USAGE_INVALID",
      `Session ${quote(sessionId)} was not opened with this Fleet: call sessions.create or sessions.resume first.`,
    );
  }
}

function messageOf(prompt: string, { attachments }: UseSessionOptions): Prompt {
  return attachments === undefined ? prompt : { prompt, attachments };
}

/** Runs a turn, through the journal if there is one. */
async function taking(
  take: (options: SendOptions) => Promise<TurnReply>,
  open: OpenSession,
  options: SendOptions,
  journal: TurnJournal | undefined,
): Promise<TurnReply> {
  if (journal === undefined) return await take(options);
  return await journal.run(open, async (onEvent) => await take({ ...options, onEvent }));
}

/** How long a session stays open after a turn, in milliseconds. */
const IDLE_MS = 60_000;
/** How many sessions this process keeps open at most. Each costs as much as an open session of the library. */
const MOST = 200;

/** The user and the options for which a session was opened. A use with other values has to open the session again. */
interface KeptFor {
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
 * Sessions that stay open for a while after a turn, because opening a session takes longer than a short turn. They are
 * idle sessions with a client, like those of a program that uses the library: no marker and no lease protects them. So
 * anybody may unload, move or delete them, and may stop their servers. The next turn notices that, and loads the
 * session again.
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
