import type { SessionEvent } from "@github/copilot-sdk";
import { deadline, either } from "../../base/clock.js";
import { isFleetError, quote } from "../../base/errors.js";
import type { ServerRecord } from "../../base/server.js";
import type { SessionRecord } from "../../base/session.js";
import { assertCredits } from "../../base/usage.js";
import type { ConnectedClient } from "../../runtime/client/connect.js";
import { RawConnection } from "../../runtime/client/raw-connection.js";
import type { TurnReply } from "../../runtime/client/turn.js";
import { promptsSince } from "../../runtime/history/session-events.js";
import { historyBytes } from "../../runtime/history/session-state.js";
import { provenEndpoint } from "../../runtime/process/probe.js";
import { hasEnded } from "../../servers/server.js";
import { promptHistory } from "../history.js";
import { giveProvider } from "../memory/open-notes.js";
import { explained, sessionNotFound, turnCut } from "../problems.js";
import type { Asker, AskerOptions } from "../requests.js";
import type { Sessions } from "../sessions.js";
import { recordFor, type SessionView } from "../view.js";
import {
  answer,
  isUnloaded,
  type Loading,
  missingAccess,
  type SessionOptions,
  sessionConfig,
  type Transport,
  withSettings,
} from "./load.js";
import {
  type AttachedSession,
  askerOf,
  forgetApprovals,
  OpenSession,
  type Prompt,
  type SendOptions,
} from "./open-session.js";
import { isStopped } from "./server.js";
import { assertAccepted, credentialsOf, forgetToken } from "./session-token.js";
import { endingOf, TurnEvents } from "./turn-records.js";
import { type SessionUse, useSession } from "./use-session.js";

interface LocalAttached extends AttachedSession {
  connection: ConnectedClient;
  server: ServerRecord;
}

export interface OpenOptions extends AskerOptions {
  /** Whether the session stays open between its turns. This client then answers agent requests only in its turns. */
  isKept?: boolean | undefined;
  /** Further settings for the SDK's `createSession` or `resumeSession`. */
  session?: SessionOptions | undefined;
}

/** How long a server may take to start and to load the session again, in milliseconds. */
const REOPEN_MS = 30_000;

/**
 * A session that this process uses on a server of this host. If the session is evicted or its server ends between
 * turns, the next turn loads it again.
 */
export class LocalSession extends OpenSession<LocalAttached> {
  readonly #sessions: Sessions;
  readonly #options: OpenOptions;
  /** The record as this object read or wrote it last. */
  #latest: SessionRecord;
  /**
   * The promise of the write that records the last turn. The turn's reply does not wait for it. Resolves with the new
   * record. Resolves with null if the session was deleted first, and with undefined if the write failed.
   */
  #recording: Promise<SessionRecord | null | undefined> | undefined;
  readonly #transport: SdkTransport;
  readonly #kept: Disposable;
  #connected: Disposable;

  private constructor(
    sessions: Sessions,
    use: SessionUse,
    { options, transport, attached }: { options: OpenOptions; transport: SdkTransport; attached: LocalAttached },
  ) {
    super(sessions.context, use.record, attached, transport.asker);
    this.#sessions = sessions;
    this.#options = options;
    this.#transport = transport;
    this.#latest = use.record;
    this.#kept = sessions.context.provider.keep(use.record.id);
    this.#connected = sessions.context.clients.using(attached.server.id);
  }

  get server(): ServerRecord {
    return this.attached.server;
  }

  protected override replace(attached: LocalAttached): void {
    super.replace(attached);
    this.#connected[Symbol.dispose]();
    this.#connected = this.context.clients.using(attached.server.id);
  }

  /** @param isNew whether the session was recorded a moment ago */
  static async open(sessions: Sessions, use: SessionUse, options: OpenOptions, isNew = false): Promise<LocalSession> {
    const transport = new SdkTransport(sessions, options, askerOf(sessions.context, use.record.id, options));
    const attached = await use.open(transport, { isNew });
    await sessions.recordModel(use.record, options.session?.model);
    return new LocalSession(sessions, use, { options, transport, attached });
  }

  /** @throws FleetError as {@link runTurn} and {@link useSession}; `FLEET_LEASE_LOST`. */
  async send(message: Prompt, options: SendOptions = {}): Promise<TurnReply> {
    const { context, isLost } = this;
    const { user } = this.#options;
    // Read the record again if the session is not open here, because others may have moved it.
    const record = isLost ? await recordFor(context, this.record.id, user) : this.record;
    const at = isLost ? undefined : this.attached.server;
    // A program may call `send` on a session object after it has closed the fleet. Then start nothing.
    context.clients.assertOpen();
    await using use = await useSession(context, { ...options, record, user, isTurn: true, at, openMs: REOPEN_MS });
    const reply = await this.turn(use, message, options);
    await use.endOrWarn();
    return reply;
  }

  /** Takes a turn as part of a use that has begun. @throws FleetError as {@link send}. */
  async turn(use: SessionUse, message: Prompt, options: SendOptions): Promise<TurnReply> {
    const { id } = this.record;
    const prompt = typeof message === "string" ? { prompt: message } : message;
    const { lease } = use;
    // If the lease is lost, abort the turn, because the next holder of the lease may begin another turn.
    using stop = either(options.signal, lease?.signal);
    let hasBegun = false;
    let bytesBefore = 0;
    const take = async () => {
      const { connection, server } = this.attached;
      bytesBefore = historyBytes(server.home, id);
      await this.#transport.provide(use, this.attached, stop.signal);
      await assertCredits(this.context.config, id, async () => {
        using limit = deadline(options.timeoutMs, stop.signal);
        return await answer(this.session.rpc.usage.getMetrics(), connection, limit.signal);
      });
      await forgetApprovals(this.context.config, async (name, params) => {
        if (name !== "setAllowAll")
          return await answer(this.session.rpc.permissions[name](params as never), connection, stop.signal);
        // The SDK has no function for this method.
        await using raw = await RawConnection.open(provenEndpoint(server), stop.signal);
        return await raw.request(`session.permissions.${name}`, { sessionId: id, ...params });
      });
      await lease?.check();
      using watch = connection.watchPrompt(id);
      this.#transport.isInTurn = true;
      try {
        const onEvent = (event: SessionEvent) => {
          use.turn.saw(event);
          options.onEvent?.(event);
        };
        return await this.run(connection.closed, prompt, { ...options, onEvent, signal: stop.signal }).catch(explained);
      } finally {
        this.#transport.isInTurn = false;
        hasBegun = watch.hasBegun;
      }
    };
    /** Whether the server ended before it began the prompt. The session's history then does not contain the prompt. */
    const isUntouched = async (error: unknown) => {
      const { server } = this.attached;
      if (!isFleetError(error, "FLEET_SERVER_LOST") || hasBegun || !(await hasEnded(server))) return false;
      return (await promptsSince(server.home, id, bytesBefore)).length === 0;
    };
    const reopen = async () => this.replace(await use.reopen(this.#transport));
    if (this.isLost || this.attached.server !== use.server) await reopen();
    const attempt = async () =>
      await take().catch(async (error: unknown) => {
        // Send the prompt again if the session was evicted after the last turn, or if its server ended before it began
        // the prompt.
        if (!isUnloaded(error) && !(await isUntouched(error))) throw await this.#reasonFor(error);
        await reopen();
        return await take();
      });
    const charge = await use.charge();
    const events = new TurnEvents(this.context.events, this.#options.user, use);
    const reply = await attempt().catch((error: unknown) => {
      const ending = endingOf(error, options.signal);
      if (hasBegun) use.turn.ended(ending.outcome);
      else charge?.refund();
      events.ended(ending);
      throw error;
    });
    use.turn.ended(reply.outcome);
    events.ended({ outcome: reply.outcome, reason: null });
    this.#recording = this.#recordTurn(prompt.prompt);
    return reply;
  }

  /**
   * The error to report for a failed turn. A server that a command stops only closes its connections, so this checks
   * whether a command stopped the server. If the server refused a credential, forgets the credential.
   */
  async #reasonFor(error: unknown): Promise<unknown> {
    // The next turn gives the server its provider again, in case the server has another one.
    this.context.provider.noteGiven(this.record.id, null);
    if (isFleetError(error, "FLEET_CREDENTIAL_REFUSED")) {
      forgetToken(this.context, { record: this.record, server: this.attached.server });
    }
    if (!isFleetError(error, "FLEET_SERVER_LOST")) return error;
    const isCut = await isStopped(this.context, this.attached.server).catch(() => false);
    return isCut ? turnCut(this.record.id, error) : error;
  }

  async history(fromBytes?: number) {
    return await promptHistory(this.attached.server.home, this.record.id, fromBytes);
  }

  /** Records a turn. If that fails, only warns, because the caller has the reply. */
  async #recordTurn(prompt: string): Promise<SessionRecord | null | undefined> {
    try {
      const record = await this.#sessions.lastUses.note(this.#latest, prompt);
      this.#latest = record ?? this.#latest;
      return record;
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      this.context.warn(`A turn in session ${quote(this.record.id)} could not be recorded: ${why}`);
      return undefined;
    }
  }

  /**
   * Records the last turn now, without waiting for later turns to share the write. Resolves like {@link #recording}.
   */
  async #recorded(): Promise<SessionRecord | null | undefined> {
    await this.#sessions.lastUses.flush(this.record.id);
    return await this.#recording;
  }

  protected async view(isAnswered: boolean): Promise<SessionView> {
    const { id, owner } = this.record;
    const record = isAnswered ? await this.#recorded() : undefined;
    if (record === null) throw sessionNotFound(id);
    if (record === undefined) return await this.#sessions.get(id, owner);
    return await this.#sessions.view(record, this.attached.server);
  }

  protected viewUnseen(): SessionView {
    return this.#sessions.viewBeside(this.record, this.attached.server, null);
  }

  protected async delete(): Promise<void> {
    await this.#sessions.end(this.record.id);
  }

  protected override async disconnect(): Promise<void> {
    await this.#recorded();
    await super.disconnect();
    this.#kept[Symbol.dispose]();
    this.#connected[Symbol.dispose]();
  }
}

/** Opens sessions with the SDK's client. */
class SdkTransport implements Transport<LocalAttached> {
  /** Whether this process runs a turn in the session. */
  isInTurn = false;
  readonly asker: Asker | null;
  readonly #sessions: Sessions;
  readonly #options: OpenOptions;

  constructor(sessions: Sessions, options: OpenOptions, asker: Asker | null) {
    this.#sessions = sessions;
    this.#options = options;
    this.asker = asker;
  }

  async load({ how, record, server, access }: Loading, signal: AbortSignal): Promise<LocalAttached> {
    const { clients, config, provider } = this.#sessions.context;
    const { isolation } = server;
    const { user, session, isKept = false } = this.#options;
    const empty = isolation === "shared" ? { mode: "empty" as const, baseDirectory: server.home } : {};
    using _ = clients.using(server.id);
    const connection = await clients.to(server, empty, signal);
    const own = isolation === "per-user" && user === record.owner;
    const isMember = user !== record.owner;
    const decides = () => this.isInTurn || !(isMember || isKept);
    const { sandbox } = server;
    const surroundings = { config, isolation, own, sandbox, decides, asker: this.asker, ...access };
    const settings = sessionConfig({ ...surroundings, member: isMember }, record, session);
    const request =
      how === "resume"
        ? connection.client.resumeSession(record.id, settings)
        : connection.client.createSession({ ...settings, sessionId: record.id });
    const opened = await answer(withSettings(request, config, isMember), connection, signal);
    // A client that is connected directly to the server may resume the session with its own provider.
    opened.on("session.resume", () => provider.noteGiven(record.id, null));
    return { session: opened, closed: connection.closed, connection, server };
  }

  /**
   * Gives the server the provider or the GitHub token for a turn, unless the caller has set one for the session.
   */
  async provide(use: SessionUse, { session, connection }: LocalAttached, signal: AbortSignal): Promise<void> {
    const { provider, providers, gitHubToken } = this.#options.session ?? {};
    if ((provider ?? providers ?? gitHubToken) !== undefined) return;
    const { context } = this.#sessions;
    const { provider: missing, gitHubToken: token } = await missingAccess(context, use, signal);
    if (missing !== null) {
      const give = async () => await answer(session.rpc.options.update({ provider: missing }), connection, signal);
      await giveProvider(context, use, missing, give);
    }
    if (token !== null) {
      const given = session.rpc.gitHubAuth.setCredentials(credentialsOf(context, token));
      assertAccepted(context, use, await answer(given, connection, signal));
    }
    use.model.isGiven = true;
  }
}
