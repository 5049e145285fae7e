import { randomUUID } from "node:crypto";
import { FleetError, isFleetError } from "../../errors.js";
import { sessionMoved } from "../../hosts/problems.js";
import type { TokenHolder } from "../../identity/tokens.js";
import type { ServerRecord } from "../../model/server.js";
import type { SessionRecord } from "../../model/session.js";
import { hasEnded } from "../../pool/server.js";
import { deadline, isTimeout, pause } from "../../runtime/deadline.js";
import { historyBytes, promptsSince } from "../../runtime/history/session-events.js";
import type { TurnLease } from "../../sessions/leases/seen.js";
import { takeTurn } from "../../sessions/use/turn-taking.js";
import type { Protocol } from "../policy/protocols.js";
import { checkReach } from "../policy/reach.js";
import { type Attachment, isElsewhere, saysUnloaded } from "../state/attachments.js";
import type { DoorContext } from "../state/door/door-state.js";
import type { DoorEvent } from "../state/door/report.js";
import { failure } from "../state/door/report.js";
import type { Link, ServerLink } from "../state/links.js";
import type { OpenRequests } from "../state/open-requests.js";
import { Turn } from "../state/turn.js";
import { messageIdsIn, messageIdsOf, type TurnEnds } from "../state/turn-ends.js";
import type { ClientRequest } from "../wire/client-message.js";
import { clientGone, doorDraining, SERVER_ENDED, serverLost } from "../wire/refusals.js";
import { leftTurnOver } from "./left-turn.js";

export interface TurnsContext extends DoorContext {
  user: string;
  /** The protocol that the client speaks. */
  protocol: Protocol;
  /** The lease that covers the client's turns in a session, if the client brought one. */
  lease: TokenHolder["lease"];
  openRequests: OpenRequests;
  ends: TurnEnds;
  attachment: (sessionId: string) => Attachment | undefined;
  /** The session's server here. If the client has opened the session, the session is loaded for it. */
  linkFor: (record: SessionRecord) => Promise<ServerLink>;
  /** Refuses a prompt. If its session has moved to another host, the prompt is relayed there instead. */
  refuse: (request: ClientRequest, error: unknown) => void;
  isDraining: () => boolean;
  /** The session is no longer in its server's memory. */
  unloaded: (sessionId: string) => void;
  onEvent: (event: Omit<DoorEvent, "address" | "user">) => void;
  /** Tells the client that its turn was cut. */
  cut: (sessionId: string, message: string) => void;
}

interface Prompt {
  readonly request: ClientRequest;
  /** Its position in the order in which prompts came, and in which they reach the server. */
  readonly place: number;
  /** The turn that it counts as a part of. */
  turn: Turn | undefined;
  /** Whether the server has already answered once that it does not have the session. */
  again: boolean;
  /** How it was last sent. */
  sent: SentPrompt | undefined;
  /** Whether it was sent again because its server ended. */
  isRepeated: boolean;
  /** Whether its client has the server's answer. */
  isAnswered: boolean;
}

interface SentPrompt {
  readonly link: ServerLink;
  /** The length of the session's history when it was sent, in bytes. */
  readonly historyBytes: number;
  /** The message ids of prompts that had begun by then. */
  readonly seenBefore: ReadonlySet<string>;
  /** The message ids in the server's answer; null until the server answers. */
  messageIds: readonly string[] | null;
}

interface Running {
  readonly turn: Turn;
  /** Read again if the session has moved to another server by the time the turn begins. */
  record: SessionRecord;
  /** Prompts to be sent, in order, once the turn has begun and the prompts before them have been sent. */
  readonly waiting: Prompt[];
  /** Resolves once the waiting prompts have been sent or refused; null when no prompt is being sent. */
  sending: Promise<void> | null;
  /** Prompts that were sent in this turn and not refused. */
  readonly sent: Set<Prompt>;
  /**
   * Prompts whose server has ended, and of which the door does not know yet whether they had begun. Until it knows, it
   * sends no other prompt.
   */
  doubtful: readonly Prompt[];
  readonly abort: AbortController;
  over: Promise<void>;
}

/** How long to retry while a server is ending, and how often, in milliseconds. */
const ENDING_MS = 2_000;
const ENDING_POLL_MS = 20;
/**
 * How long a server must be idle, in milliseconds, before a prompt that it took counts as one that never begins: without an
 * error, and after an error.
 */
const NEVER_BEGINS_MS = 5_000;
const FAILED_MS = 1_000;

/**
 * The turns of one client. Each session has one turn at a time, for all who use it, by the rules of `turn-taking.ts`.
 */
export class Turns {
  readonly #context: TurnsContext;
  readonly #running = new Map<string, Running>();
  #places = 0;
  /** The reason why no more turns begin; undefined while they may begin. */
  #gone: FleetError | undefined;

  constructor(context: TurnsContext) {
    this.#context = context;
  }

  /** The turn of a session that this client is in or waits for. */
  of(sessionId: string): Turn | undefined {
    return this.#running.get(sessionId)?.turn;
  }

  /** Resolves when no turn of this client is under way. */
  async settled(): Promise<void> {
    while (this.#running.size > 0) await Promise.all([...this.#running.values()].map(({ over }) => over));
  }

  /** How many turns are under way or waiting. */
  get size(): number {
    return [...this.#running.values()].filter(({ turn }) => turn.over === null).length;
  }

  /**
   * Takes a prompt. Resolves once it has been sent or refused, or has to wait.
   *
   * @throws FleetError `FLEET_TURN_FAILED` after `close`; `FLEET_DOOR_DRAINING` when the door is about to close.
   */
  async send(request: ClientRequest, record: SessionRecord): Promise<void> {
    // The client hung up while the prompt was on its way here.
    if (this.#gone !== undefined) throw this.#gone;
    // Check again: the door may have begun to close while the fleet looked up where the session is.
    if (this.#context.isDraining()) throw doorDraining();
    const state = { turn: undefined, again: false, sent: undefined, isRepeated: false, isAnswered: false };
    await this.#queue({ request, place: this.#places++, ...state }, record);
  }

  /** Whether prompts of the client wait for their turn in the session. */
  waits(sessionId: string): boolean {
    const running = this.#running.get(sessionId);
    return running !== undefined && isWaiting(running);
  }

  /** Resolves once all prompts of the client's current turn have been sent or refused, so later requests may follow. */
  async sent(sessionId: string): Promise<void> {
    await this.#running.get(sessionId)?.sending;
  }

  /**
   * Gives up the prompts that wait for their turn.
   *
   * @returns false when there are none.
   */
  cancel(sessionId: string): boolean {
    const running = this.#running.get(sessionId);
    if (running === undefined || !isWaiting(running)) return false;
    this.#giveUp(
      running,
      new FleetError("FLEET_TURN_FAILED", "The prompt was cancelled while it waited for its turn."),
    );
    return true;
  }

  /** The same for all sessions, with the given error. */
  cancelAll(error: FleetError): void {
    for (const running of this.#running.values()) if (isWaiting(running)) this.#giveUp(running, error);
  }

  close(): void {
    const gone = clientGone();
    this.#gone = gone;
    for (const { turn, abort } of this.#running.values()) {
      turn.end("closed");
      abort.abort(gone);
    }
  }

  /** Refuses the waiting prompts at once, so that a prompt which comes later is not among them. */
  #giveUp({ turn, waiting, abort, record }: Running, error: FleetError): void {
    for (const prompt of waiting.splice(0)) this.#refuse(prompt, record, error);
    turn.end("refused");
    abort.abort(error);
  }

  /** Resolves once the prompt has been sent or refused, or has to wait for a turn. */
  async #queue(prompt: Prompt, record: SessionRecord): Promise<void> {
    const running = this.#running.get(record.id);
    // A new turn may begin when the last one is over, but must not overtake prompts that are left over from it.
    if (running === undefined || (running.turn.over !== null && running.sending === null)) {
      this.#begin(prompt, record);
      return;
    }
    insert(running.waiting, prompt);
    if (running.turn.active) await this.#sendWaiting(running);
  }

  #begin(prompt: Prompt, record: SessionRecord): void {
    const running: Running = {
      turn: new Turn(),
      record,
      waiting: [prompt],
      sending: null,
      sent: new Set(),
      doubtful: [],
      abort: new AbortController(),
      over: Promise.resolve(),
    };
    running.over = this.#run(running);
    this.#running.set(record.id, running);
    void running.over.then(() => {
      if (this.#running.get(record.id) === running) this.#running.delete(record.id);
    });
  }

  /** Never rejects. An error is sent to the clients whose prompts wait. */
  async #run(running: Running): Promise<void> {
    const { sessions, user, lease: own, config, unloaded, onEvent } = this.#context;
    const { turn, record, waiting, abort } = running;
    const waitMs = config.serve.turnWaitMs;
    const { signal } = abort;
    const fence = own?.sessionId === record.id ? own.fence : undefined;
    const place = {
      sessionId: record.id,
      permit: async ({ always }: { always: boolean }) =>
        await sessions.permit(record, { waitMs, signal }, { always, user, fence }),
      server: async () => {
        const { server } = await this.#linkFor(running.record);
        turn.marked = server;
        return server;
      },
      admitted: async (server: ServerRecord) => {
        if (await sessions.admitted(server, record.id)) return true;
        running.record = await sessions.recordFor(record.id, user);
        if (running.record.serverId !== server.id) unloaded(record.id);
        return false;
      },
      unreleased: (error: FleetError) => onEvent({ event: "failed", sessionId: record.id, ...failure(error) }),
      waitMs,
      signal,
    };
    try {
      await takeTurn(place, async (lease) => await this.#hold(running, lease));
    } catch (error) {
      // The lease may have been lost after all prompts were answered. Then no client waits for the error, so log it.
      if (waiting.length === 0 && error !== signal.reason)
        onEvent({ event: "failed", sessionId: record.id, ...failure(error) });
      for (const prompt of waiting.splice(0)) this.#refuse(prompt, record, error);
      turn.end("refused");
    }
    // Count only complete turns. A session with turns must have a history on disk, and a turn that was cut may not have
    // written one.
    if (!turn.accepted || turn.over !== "idle") return;
    await sessions.used(record.id).catch((error: unknown) => {
      onEvent({ event: "failed", sessionId: record.id, ...failure(error, "The turn could not be recorded") });
    });
  }

  async #hold(running: Running, lease: TurnLease | undefined): Promise<void> {
    const { turn, abort } = running;
    abort.signal.throwIfAborted();
    const onLost = () => void this.#abandon(running.record, lease?.signal.reason);
    lease?.signal.addEventListener("abort", onLost, { once: true });
    try {
      turn.start(lease);
      await this.#sendWaiting(running);
      const isBlind = () => this.#context.attachment(running.record.id) === undefined;
      const { ends } = this.#context;
      const patienceMs = () => {
        if (ends.hasBegunAll(running.record.id)) return 0;
        return ends.holdsError(running.record.id) ? FAILED_MS : NEVER_BEGINS_MS;
      };
      const isFoundIdle = await turn.ended(async () => await this.#isIdle(running.record), isBlind, patienceMs);
      if (isFoundIdle) ends.over(running.record.id);
    } finally {
      lease?.signal.removeEventListener("abort", onLost);
    }
    const { marked: server } = turn;
    if (turn.over !== "closed" || !turn.begun || server === undefined) return;
    const { config, isDraining } = this.#context;
    const times = { ttlMs: config.lock.ttlMs, answerMs: config.health.timeoutMs };
    await leftTurnOver({ server, sessionId: running.record.id, lease: lease?.signal, ...times, isDraining });
  }

  /** Sends the waiting prompts one after another, while the turn is active. Never rejects. */
  async #sendWaiting(running: Running): Promise<void> {
    const { turn, waiting } = running;
    // Count each prompt as part of the turn now, so that a refusal does not end the turn for the prompts behind it.
    for (const prompt of waiting) {
      if (prompt.turn === turn) continue;
      prompt.turn = turn;
      turn.sent();
    }
    running.sending ??= Promise.resolve().then(async () => {
      while (turn.active && running.doubtful.length === 0) {
        const next = waiting.shift();
        if (next === undefined) break;
        await this.#forward(running, next);
      }
      running.sending = null;
      if (turn.over !== null) this.#moveOn(running);
    });
    await running.sending;
  }

  /** The turn is over, so the prompts that still wait have neither a lease nor a use marker. They need another turn. */
  #moveOn({ waiting, record }: Running): void {
    for (const prompt of waiting.splice(0)) {
      const error = this.#gone ?? (this.#context.isDraining() ? doorDraining() : undefined);
      if (error === undefined) void this.#queue(prompt, record);
      else this.#refuse(prompt, record, error);
    }
  }

  #refuse(prompt: Prompt, { id }: SessionRecord, error: unknown): void {
    if (!prompt.isAnswered) {
      this.#context.refuse(prompt.request, error);
      return;
    }
    const { ends } = this.#context;
    ends.cut(id, error instanceof Error ? error.message : String(error));
    ends.takenAgain(id, null);
  }

  async #forward(running: Running, prompt: Prompt): Promise<void> {
    const { config, protocol } = this.#context;
    const { turn, record, waiting } = running;
    const { request } = prompt;
    try {
      const link = await this.#linkFor(record);
      checkReach(request.method, request.params, { own: link.own, config }, protocol);
      await this.#assertHere(record);
      // Refuse a prompt whose lease was lost while it waited. Check this last, right before the write to the socket.
      await turn.lease?.check();
      const [first] = waiting;
      // By now the turn may be over, or an earlier prompt may have to be sent again.
      const isOvertaking = running.doubtful.length > 0 || (first !== undefined && first.place < prompt.place);
      // A write to a connection that has ended is lost without an error.
      if (!turn.active || isOvertaking || link.upstream.closed) {
        insert(waiting, prompt);
        return;
      }
      if (prompt.isAnswered) this.#writeAgain(running, prompt, link);
      else this.#write(running, prompt, link);
    } catch (error) {
      turn.answered(false);
      this.#refuse(prompt, record, error);
    }
  }

  /**
   * As {@link TurnsContext.linkFor}, but retries while a server is ending. Such a server refuses connections for a moment.
   * Once it has ended, it is started again.
   */
  async #linkFor(record: SessionRecord): Promise<ServerLink> {
    const { linkFor } = this.#context;
    const until = performance.now() + ENDING_MS;
    for (;;) {
      try {
        return await linkFor(record);
      } catch (error) {
        const isEnding = isFleetError(error, "FLEET_SERVER_LOST") || isFleetError(error, "FLEET_SERVER_UNREACHABLE");
        if (!isEnding || performance.now() > until || this.#gone !== undefined) throw error;
      }
      await pause(ENDING_POLL_MS, undefined);
    }
  }

  #write(running: Running, prompt: Prompt, link: ServerLink): void {
    const { openRequests, attachment, unloaded } = this.#context;
    const { turn, record, sent } = running;
    const { request } = prompt;
    const { id } = record;
    this.#note(running, prompt, link);
    openRequests.forward(link, request, {
      params: { ...request.params, sessionId: id },
      onAnswer: ({ failed, body }) => {
        if (failed) sent.delete(prompt);
        if (failed && !prompt.again && attachment(id) !== undefined && saysUnloaded(body)) {
          unloaded(id);
          prompt.again = true;
          void this.#queue(prompt, record);
          return "hold";
        }
        if (!failed) this.#noteAnswer(prompt, messageIdsIn(body));
        turn.answered(!failed);
        return undefined;
      },
      onLost: () => {
        if (running.doubtful.includes(prompt)) return "hold";
        turn.end("lost");
        return undefined;
      },
    });
  }

  /** Sends a prompt again after its server has ended. The client already has that server's answer. */
  #writeAgain(running: Running, prompt: Prompt, link: ServerLink): void {
    const { ends } = this.#context;
    const { turn, record, sent } = running;
    const { request } = prompt;
    this.#note(running, prompt, link);
    const taken = (result: unknown) => {
      const messageIds = messageIdsOf(result);
      this.#noteAnswer(prompt, messageIds);
      ends.takenAgain(record.id, messageIds);
      turn.answered(true);
    };
    const params = { ...request.params, sessionId: record.id };
    link.upstream.request(request.method, params, taken).catch((error: unknown) => {
      if (running.doubtful.includes(prompt)) return;
      sent.delete(prompt);
      turn.answered(false);
      this.#refuse(prompt, record, error);
    });
  }

  #note({ sent, record }: Running, prompt: Prompt, link: ServerLink): void {
    const { id } = record;
    const home = this.#homeOf(id, link);
    const seenBefore = this.#context.ends.seen(id);
    prompt.sent = { link, historyBytes: historyBytes(home, id), seenBefore, messageIds: null };
    sent.add(prompt);
  }

  #noteAnswer(prompt: Prompt, messageIds: readonly string[]): void {
    if (prompt.sent !== undefined) prompt.sent.messageIds = messageIds;
    prompt.isAnswered = true;
  }

  /** The folder that has the session: the server's, or the one that the client chose. */
  #homeOf(sessionId: string, { server }: ServerLink): string {
    const asked = this.#context.attachment(sessionId)?.asked ?? {};
    return isElsewhere(asked) ? String(asked.configDir) : server.home;
  }

  /**
   * A server has ended. Prompts that it had not begun are sent again in the same turn, but each only once.
   *
   * @returns the sessions whose turns continue
   */
  lose(link: Link): ReadonlySet<string> {
    const goOn = new Set<string>();
    for (const [id, running] of this.#running) {
      if (!running.turn.active) continue;
      const sent = [...running.sent].filter((prompt) => prompt.sent?.link === link);
      const doubtful = sent.filter((prompt) => !this.#isSeenBegun(id, prompt));
      if (sent.length > 0 && doubtful.length === 0) continue;
      goOn.add(id);
      if (doubtful.length < sent.length) this.#context.ends.cut(id, SERVER_ENDED);
      if (doubtful.length === 0 || link.kind !== "server") continue;
      running.doubtful = [...running.doubtful, ...doubtful];
      void this.#resolve(running, doubtful, link);
    }
    return goOn;
  }

  /** Whether the session's events show that the server has begun the prompt. */
  #isSeenBegun(sessionId: string, { sent }: Prompt): boolean {
    const { ends } = this.#context;
    if (sent === undefined) return false;
    if (sent.messageIds !== null) return !sent.messageIds.some((id) => ends.waitsFor(sessionId, id));
    return [...ends.seen(sessionId)].some((id) => !sent.seenBefore.has(id));
  }

  /** Sends prompts of an ended server again, unless the server had begun them. Never rejects. */
  async #resolve(running: Running, prompts: readonly Prompt[], link: ServerLink): Promise<void> {
    const { openRequests, ends, onEvent } = this.#context;
    const { turn, record, waiting, sent } = running;
    const { id } = record;
    let begun: ReadonlyMap<Prompt, string> | null = null;
    try {
      if (await hasEnded(link.server)) begun = this.#recorded(id, prompts, link);
    } catch (error) {
      onEvent({ event: "failed", sessionId: id, ...failure(error, "The session's history could not be read") });
    }
    running.doubtful = running.doubtful.filter((prompt) => !prompts.includes(prompt));
    let isCut = false;
    for (const prompt of prompts) {
      const messageId = begun?.get(prompt);
      sent.delete(prompt);
      if (messageId !== undefined) {
        isCut = true;
        if (prompt.isAnswered) continue;
        openRequests.reply(prompt.request, { messageId }, [messageId]);
        turn.answered(true);
      } else if (begun === null || prompt.isRepeated || !turn.active) {
        isCut ||= prompt.isAnswered;
        if (prompt.isAnswered) continue;
        turn.answered(false);
        openRequests.refuse(prompt.request, serverLost("it answered"));
      } else {
        prompt.isRepeated = true;
        if (prompt.isAnswered) {
          turn.sentAgain();
          ends.sentAgain(id, prompt.sent?.messageIds ?? []);
        }
        insert(waiting, prompt);
      }
    }
    if (isCut) ends.cut(id, SERVER_ENDED);
    if (waiting.length === 0) turn.end("lost");
    if (turn.active) await this.#sendWaiting(running);
    else this.#moveOn(running);
  }

  /** Returns the prompts that are in the session's history, with their message ids there. */
  #recorded(sessionId: string, prompts: readonly Prompt[], link: ServerLink): Map<Prompt, string> {
    const fromBytes = Math.min(...prompts.map(({ sent }) => sent?.historyBytes ?? 0));
    const recorded = promptsSince(this.#homeOf(sessionId, link), sessionId, fromBytes);
    const found = new Map<Prompt, string>();
    const known = new Set<string>();
    for (const { sent } of this.#running.get(sessionId)?.sent ?? [])
      for (const id of sent?.messageIds ?? []) known.add(id);
    for (const prompt of prompts) {
      const isThere = recorded.find(({ messageId = "" }) => prompt.sent?.messageIds?.includes(messageId));
      if (isThere?.messageId !== undefined) found.set(prompt, isThere.messageId);
    }
    // The server gave these prompts their ids, but ended before it answered.
    const unknown = recorded.filter(({ messageId = "" }) => !known.has(messageId));
    const unanswered = prompts.filter(({ sent }) => sent?.messageIds === null);
    const take = (prompt: Prompt, at: number) => {
      if (at !== -1) found.set(prompt, unknown.splice(at, 1)[0]?.messageId ?? randomUUID());
    };
    for (const prompt of unanswered) {
      const { prompt: text } = prompt.request.params;
      take(
        prompt,
        unknown.findIndex(({ content }) => content === text),
      );
    }
    // The history may record a prompt with a different text. A prompt must not run twice, so each remaining prompt
    // takes one of the remaining records and counts as begun.
    for (const prompt of unanswered) if (!found.has(prompt)) take(prompt, unknown.length > 0 ? 0 : -1);
    return found;
  }

  /**
   * Checks that a session which may change hosts is still here, because it may have moved while the prompt waited.
   *
   * @throws FleetError `FLEET_SESSION_MOVED`; `FLEET_HOST_AWAY` when other hosts may count this one as gone;
   * `FLEET_STORAGE_UNUSABLE`.
   */
  async #assertHere({ id }: SessionRecord): Promise<void> {
    const { directory, store } = this.#context;
    if (!directory.isShared) return;
    const now = await store.sessions.read(id);
    if (now !== null && !(await directory.has(now))) throw sessionMoved(now, null);
    await directory.assertStorage();
  }

  async #isIdle(record: SessionRecord): Promise<boolean> {
    const { linkFor, config } = this.#context;
    try {
      const { upstream } = await linkFor(record);
      using limit = deadline(config.health.timeoutMs);
      const params = { sessionId: record.id };
      const activity = await upstream.request("session.metadata.activity", params, undefined, limit.signal);
      return (activity as { hasActiveWork?: unknown }).hasActiveWork !== true;
    } catch (error) {
      // A timeout proves nothing. Any other error counts as idle: the session is not loaded, or its server has gone.
      return !isTimeout(error);
    }
  }

  /** Ends a turn whose lease is lost, so that the next holder's turn does not run into it. */
  async #abandon(record: SessionRecord, reason: unknown): Promise<void> {
    const { linkFor, cut, onEvent } = this.#context;
    cut(record.id, reason instanceof Error ? reason.message : String(reason));
    try {
      await (await linkFor(record)).upstream.ask("session.abort", { sessionId: record.id });
    } catch (error) {
      onEvent({ event: "failed", sessionId: record.id, ...failure(error, "The turn could not be ended") });
    }
  }
}

function isWaiting({ turn }: Running): boolean {
  return !turn.active && turn.over === null;
}

/** Inserts a prompt by its position among those that wait. */
function insert(waiting: Prompt[], prompt: Prompt): void {
  const behind = waiting.findIndex(({ place }) => place > prompt.place);
  waiting.splice(behind === -1 ? waiting.length : behind, 0, prompt);
}
