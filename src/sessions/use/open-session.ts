import type { CopilotSession, SessionEvent } from "@github/copilot-sdk";
import { type FleetError, isFleetError, quote } from "../../errors.js";
import type { ServerRecord } from "../../model/server.js";
import type { SessionRecord } from "../../model/session.js";
import { hasEnded } from "../../pool/server.js";
import type { ConnectedClient } from "../../runtime/client/connect.js";
import { runTurn, type TurnOptions, type TurnReply } from "../../runtime/client/turn.js";
import { abortable, deadline, either } from "../../runtime/deadline.js";
import { historyBytes, promptsSince } from "../../runtime/history/session-events.js";
import type { LeaseWait } from "../leases/leases.js";
import type { TurnLease } from "../leases/seen.js";
import { explained, isStoreTrouble, unreleased } from "../problems.js";
import { type Permit, takeTurn } from "./turn-taking.js";

/** A session that one connection has open. */
export interface Attachment {
  session: CopilotSession;
  connection: ConnectedClient;
  server: ServerRecord;
}

type Prompt = Parameters<CopilotSession["send"]>[0] | string;

/** The services that an open session needs from its creator. */
export interface SessionKeeper {
  /**
   * Loads the session again after it was unloaded, or after its server or connection ended.
   *
   * @param marked the server on which the caller has a use marker. The session is loaded there while that server runs, even
   * if it is draining: the drain waits for the caller, so the caller must not wait for the drain.
   */
  attach(record: SessionRecord, marked: ServerRecord | null): Promise<Attachment>;
  /** Whether this host still has the session. */
  has(record: SessionRecord): Promise<boolean>;
  /** Whether this launch of the server still takes turns, and still has the session. */
  admitted(server: ServerRecord, id: string): Promise<boolean>;
  /** The lease for a turn, or null if the turn needs none. With `always`, every turn needs one. */
  permit(record: SessionRecord, options: SendOptions, how: { always: boolean }): Promise<Permit | null>;
  /** Records that a turn ended. */
  used(id: string): Promise<void>;
  /** Deletes an ephemeral session whose use has ended. */
  end(id: string): Promise<void>;
  /** Reports a failure that does not affect the reply of a turn. */
  warn(message: string): void;
}

export interface SendOptions extends TurnOptions {
  /** A lease on the session that the caller holds. It is checked right before the prompt is sent. */
  lease?: TurnLease;
  /**
   * How long to wait for a lease that somebody else holds, in milliseconds. Default: 30,000. With the default, the call
   * fails at once if the same user took the lease with `copilotfleet lock` and it outlasts the wait.
   */
  waitMs?: number;
  /** Called once if the wait for that lease takes longer than a second. */
  onWait?: (wait: LeaseWait) => void;
}

const GOODBYE_MS = 2_000;
const WAIT_MS = 30_000;

/** A session that this process uses. If it is evicted or loses its server between turns, the next turn loads it again. */
export class OpenSession {
  readonly record: SessionRecord;
  readonly #keeper: SessionKeeper;
  #attached: Attachment;
  #lost = false;
  /** The write that records the last turn. The reply does not wait for it. */
  #recording: Promise<unknown> = Promise.resolve(undefined);

  constructor(record: SessionRecord, attached: Attachment, keeper: SessionKeeper) {
    this.record = record;
    this.#attached = attached;
    this.#keeper = keeper;
    this.#watch(attached);
    // Replace the SDK's own sendAndWait, which hangs until its timeout when the server ends during the turn.
    attached.session.sendAndWait = async (message, timeout = 60_000) => {
      const { event } = await this.send(message, { timeoutMs: timeout });
      return event;
    };
  }

  /** The SDK's session. It stays the same object when the session is loaded again on a live connection. */
  get session(): CopilotSession {
    return this.#attached.session;
  }

  /** The server that it is open on, or was last open on. */
  get server(): ServerRecord {
    return this.#attached.server;
  }

  /**
   * Takes a turn, after those that others have begun.
   *
   * @throws FleetError as {@link runTurn} and {@link takeTurn}; `FLEET_LEASE_LOST`, `FLEET_SESSIONS_EXHAUSTED`.
   */
  async send(message: Prompt, options: SendOptions = {}): Promise<TurnReply> {
    const { id } = this.record;
    const turn = {
      sessionId: id,
      permit: async (how: { always: boolean }) => await this.#keeper.permit(this.record, options, how),
      server: async () => {
        // Check this before setting each use marker. If the server was drained since the last turn, another one has taken
        // its place, or is started now.
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

  /** Takes a turn at once. The caller makes sure that nobody else is in one. @throws FleetError as {@link send}. */
  async turn(message: Prompt, options: TurnOptions, lease: TurnLease | undefined): Promise<TurnReply> {
    const prompt = typeof message === "string" ? { prompt: message } : message;
    // Abort the turn if its lease is lost, so that it does not overlap with a turn of the next holder.
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
    /** Whether the server ended before it began with the prompt. Its history then does not contain the prompt. */
    const isUntouched = async (error: unknown) => {
      const { server } = this.#attached;
      if (!isFleetError(error, "FLEET_SERVER_LOST") || hasBegun || !(await hasEnded(server))) return false;
      return promptsSince(server.home, this.record.id, bytesBefore).length === 0;
    };
    if (this.#lost) await this.#reattach(this.#attached.server);
    const reply = await take().catch(async (error: unknown) => {
      // The session was evicted after the last turn, or its server ended before this turn began. Send the prompt once more.
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
    // Listeners of the earlier session object still get all events.
    if (attached.session !== before) attached.session.on((event) => dispatch(before, event));
    this.#attached = attached;
  }

  #watch({ connection }: Attachment): void {
    void connection.closed.then(() => {
      if (this.#attached.connection === connection) this.#lost = true;
    });
  }

  /** Resolves when all turns are recorded. If the store refuses a record, only warns, because the caller has the reply. */
  async recorded(): Promise<void> {
    const failure = await this.#recording;
    if (failure === undefined) return;
    if (!isStoreTrouble(failure)) throw failure;
    this.#recording = Promise.resolve(undefined);
    this.#keeper.warn(`A turn in session ${quote(this.record.id)} could not be recorded: ${failure.message}`);
  }

  /** Begins to record a turn, once the previous turn is recorded. */
  async #record(): Promise<void> {
    await this.recorded();
    this.#recording = this.#keeper.used(this.record.id).then(
      () => undefined,
      (error: unknown) => error,
    );
  }

  /**
   * Leaves the session, which is unloaded if nobody else is attached. Its state stays, but an ephemeral session is deleted,
   * unless `park` keeps it for its next use.
   */
  async close(options: { park?: boolean } = {}): Promise<void> {
    await this.recorded();
    const { session, connection } = this.#attached;
    {
      using limit = deadline(GOODBYE_MS);
      // Limit the wait, because the server may be dead or hang. It lets go of the session when the connection ends.
      await abortable(Promise.race([session.disconnect(), connection.closed]), limit.signal).catch(() => null);
    }
    if (this.record.persistence === "ephemeral" && options.park !== true) await this.#keeper.end(this.record.id);
  }
}

function isUnloaded(error: unknown): boolean {
  return error instanceof Error && /session not found/i.test(error.message);
}

/** The SDK's client passes events to a session with `_dispatchEvent`. A session without that method gets no more events. */
function dispatch(session: CopilotSession, event: SessionEvent): void {
  const { _dispatchEvent } = session as unknown as { _dispatchEvent?: (event: SessionEvent) => void };
  _dispatchEvent?.call(session, event);
}
