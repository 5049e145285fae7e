import type { CopilotSession, SessionEvent } from "@github/copilot-sdk";
import { type FleetError, isFleetError, quote } from "../errors.js";
import { hasEnded } from "../pool/server.js";
import type { ConnectedClient } from "../runtime/client/connect.js";
import { runTurn, type TurnOptions, type TurnReply } from "../runtime/client/turn.js";
import { abortable, deadline, either } from "../runtime/deadline.js";
import { historyBytes, promptsSince } from "../runtime/session-events.js";
import type { ServerRecord, SessionRecord } from "../store/store.js";
import type { TurnLease } from "./lease-seen.js";
import type { LeaseWait } from "./leases.js";
import { explained, isStoreTrouble, unreleased } from "./problems.js";
import { type Permit, takeTurn } from "./turn-taking.js";

/** A session as one connection has it. */
export interface Attachment {
  session: CopilotSession;
  connection: ConnectedClient;
  server: ServerRecord;
}

type Prompt = Parameters<CopilotSession["send"]>[0] | string;

/** What an open session needs of those who opened it. */
export interface SessionKeeper {
  /**
   * Loads the session again after it was unloaded, or after its server or connection ended. Who has marked its use on a
   * server goes there as long as that runs: its drain waits for this one, so this one must not wait for it.
   */
  attach(record: SessionRecord, marked: ServerRecord | null): Promise<Attachment>;
  /** Whether this host still has the session. */
  has(record: SessionRecord): Promise<boolean>;
  /** Whether this launch of the server still takes turns, and still has the session. */
  admitted(server: ServerRecord, id: string): Promise<boolean>;
  /** The lease that a turn needs, or null if it needs none; with `always` it does. */
  permit(record: SessionRecord, options: SendOptions, how: { always: boolean }): Promise<Permit | null>;
  /** Records a turn that ended. */
  used(id: string): Promise<void>;
  /** Deletes an ephemeral session whose use has ended. */
  end(id: string): Promise<void>;
  /** Tells of what came to nothing beside a turn that was answered. */
  warn(message: string): void;
}

export interface SendOptions extends TurnOptions {
  /** A lease on the session that the caller holds; it is checked right before the prompt goes out. */
  lease?: TurnLease;
  /**
   * How long to wait for a lease that somebody else holds, in milliseconds. Default: 30,000; then a lease that the same user
   * took with `copilotfleet lock`, and that outlasts the wait, is refused at once.
   */
  waitMs?: number;
  /** Called once if the wait for that lease takes longer than a second. */
  onWait?: (wait: LeaseWait) => void;
}

const GOODBYE_MS = 2_000;
const WAIT_MS = 30_000;

/** A session that this process uses. It may be evicted or lose its server between turns: the next turn loads it again. */
export class OpenSession {
  readonly record: SessionRecord;
  readonly #keeper: SessionKeeper;
  #attached: Attachment;
  #lost = false;
  /** The record of the last turn, being written: the reply does not wait for the disk. */
  #recording: Promise<unknown> = Promise.resolve(undefined);

  constructor(record: SessionRecord, attached: Attachment, keeper: SessionKeeper) {
    this.record = record;
    this.#attached = attached;
    this.#keeper = keeper;
    this.#watch(attached);
    // The SDK's own sendAndWait hangs until its time-out when the server ends during the turn; this one does not.
    attached.session.sendAndWait = async (message, timeout = 60_000) => {
      const { event } = await this.send(message, { timeoutMs: timeout });
      return event;
    };
  }

  /** The SDK's session. It stays the same when the session is unloaded and loaded again on a living connection. */
  get session(): CopilotSession {
    return this.#attached.session;
  }

  /** The server that it is open on, or was last. */
  get server(): ServerRecord {
    return this.#attached.server;
  }

  /**
   * One turn, when it is this one's turn.
   *
   * @throws as {@link runTurn}; `FLEET_SESSION_LOCKED`, `FLEET_SESSION_BUSY`, `FLEET_LEASE_LOST`, `FLEET_SESSIONS_EXHAUSTED`.
   */
  async send(message: Prompt, options: SendOptions = {}): Promise<TurnReply> {
    const { id } = this.record;
    const turn = {
      sessionId: id,
      permit: async (how: { always: boolean }) => await this.#keeper.permit(this.record, options, how),
      server: async () => {
        // Asked before each mark: a server that was drained meanwhile is another one by now, or is started for this.
        const isHere =
          !this.#lost &&
          (await this.#keeper.has(this.record)) &&
          (await this.#keeper.admitted(this.#attached.server, id));
        if (!isHere) await this.#reattach(null);
        return this.#attached.server;
      },
      admitted: async (server: ServerRecord) => await this.#keeper.admitted(server, id),
      unreleased: ({ message }: FleetError) => this.#keeper.warn(unreleased(id, message)),
      waitMs: options.waitMs ?? WAIT_MS,
      signal: options.signal,
    };
    return await takeTurn(turn, async (lease) => await this.turn(message, options, lease));
  }

  /** One turn at once: for callers that have seen to it that nobody else is in one. */
  async turn(message: Prompt, options: TurnOptions, lease: TurnLease | undefined): Promise<TurnReply> {
    const prompt = typeof message === "string" ? { prompt: message } : message;
    // A turn whose lease is lost is aborted: the next holder's must not run into it.
    using stop = either(options.signal, lease?.signal);
    let hasBegun = false;
    let bytesBefore = 0;
    const take = async () => {
      const { session, connection, server } = this.#attached;
      await lease?.check();
      bytesBefore = historyBytes(server.home, this.record.id);
      using watch = connection.watchPrompt(this.record.id);
      try {
        return await runTurn(session, connection.closed, prompt, { ...options, signal: stop.signal }).catch(explained);
      } finally {
        hasBegun = watch.hasBegun;
      }
    };
    /** Whether the server ended before it began with the prompt. */
    const isUntouched = async (error: unknown) => {
      const { server } = this.#attached;
      if (!isFleetError(error, "FLEET_SERVER_LOST") || hasBegun || !(await hasEnded(server))) return false;
      return promptsSince(server.home, this.record.id, bytesBefore).length === 0;
    };
    if (this.#lost) await this.#reattach(this.#attached.server);
    const reply = await take().catch(async (error: unknown) => {
      // Evicted since the last turn, or lost with its server: nothing of this one has happened. It is sent once more.
      if (!isUnloaded(error) && !(await isUntouched(error))) throw error;
      await this.#reattach(this.#attached.server);
      return await take();
    });
    await this.#record();
    return reply;
  }

  async #reattach(marked: ServerRecord | null): Promise<void> {
    const before = this.#attached.session;
    const attached = await this.#keeper.attach(this.record, marked);
    this.#lost = false;
    this.#watch(attached);
    // Whoever listens to the first session object goes on hearing what happens.
    if (attached.session !== before) attached.session.on((event) => dispatch(before, event));
    this.#attached = attached;
  }

  #watch({ connection }: Attachment): void {
    void connection.closed.then(() => {
      if (this.#attached.connection === connection) this.#lost = true;
    });
  }

  /** Resolves when all turns are recorded. One that the store does not take is warned of: its reply was had all the same. */
  async recorded(): Promise<void> {
    const failure = await this.#recording;
    if (failure === undefined) return;
    if (!isStoreTrouble(failure)) throw failure;
    this.#recording = Promise.resolve(undefined);
    this.#keeper.warn(`A turn in session ${quote(this.record.id)} could not be recorded: ${failure.message}`);
  }

  /** Begins to record a turn, once the one before is recorded. */
  async #record(): Promise<void> {
    await this.recorded();
    this.#recording = this.#keeper.used(this.record.id).then(
      () => undefined,
      (error: unknown) => error,
    );
  }

  /**
   * Leaves the session: it is unloaded when nobody else is attached. Its state stays, unless it is ephemeral: then its
   * use has ended (with `park` it has not, and the session waits for the next one to use it).
   */
  async close(options: { park?: boolean } = {}): Promise<void> {
    await this.recorded();
    const { session, connection } = this.#attached;
    {
      using limit = deadline(GOODBYE_MS);
      // A server that died or hangs has nothing more to say, and what it holds goes with the connection.
      await abortable(Promise.race([session.disconnect(), connection.closed]), limit.signal).catch(() => null);
    }
    if (this.record.persistence === "ephemeral" && options.park !== true) await this.#keeper.end(this.record.id);
  }
}

function isUnloaded(error: unknown): boolean {
  return error instanceof Error && /session not found/i.test(error.message);
}

/** `_dispatchEvent` is how the SDK's client hands an event to a session; a session without it hears nothing more. */
function dispatch(session: CopilotSession, event: SessionEvent): void {
  const { _dispatchEvent } = session as unknown as { _dispatchEvent?: (event: SessionEvent) => void };
  _dispatchEvent?.call(session, event);
}
