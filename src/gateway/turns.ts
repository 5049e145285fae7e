import { randomUUID } from "node:crypto";
import { FleetError, isFleetError } from "../errors.js";
import { sessionMoved } from "../hosts/problems.js";
import { hasEnded } from "../pool/server.js";
import { deadline, isTimeout, pause } from "../runtime/deadline.js";
import { historyBytes, promptsSince } from "../runtime/session-events.js";
import type { TurnLease } from "../sessions/lease-seen.js";
import { takeTurn } from "../sessions/turn-taking.js";
import type { ServerRecord, SessionRecord } from "../store/store.js";
import { type Attachment, isElsewhere, saysUnloaded } from "./attachments.js";
import type { ClientRequest } from "./client-message.js";
import type { DoorContext, DoorEvent } from "./context.js";
import { leftTurnOver } from "./left-turn.js";
import type { Link, ServerLink } from "./links.js";
import type { OpenRequests } from "./open-requests.js";
import type { Protocol } from "./protocols.js";
import { checkReach } from "./reach.js";
import { clientGone, doorDraining, failure, SERVER_ENDED, serverLost } from "./refusals.js";
import type { TokenHolder } from "./tokens.js";
import { Turn } from "./turn.js";
import { messageIdsIn, messageIdsOf, type TurnEnds } from "./turn-ends.js";

export interface TurnsContext extends DoorContext {
  user: string;
  /** The protocol that the client speaks. */
  protocol: Protocol;
  /** The lease that the client's turns in a session are taken under, if it came with one. */
  lease: TokenHolder["lease"];
  openRequests: OpenRequests;
  ends: TurnEnds;
  attachment: (sessionId: string) => Attachment | undefined;
  /** The session's server here, with the session loaded for this client if the client opened it. */
  linkFor: (record: SessionRecord) => Promise<ServerLink>;
  /** Refuses a prompt; one whose session has gone to another host is relayed there instead. */
  refuse: (request: ClientRequest, error: unknown) => void;
  isDraining: () => boolean;
  /** The session is not in its server's memory any more. */
  unloaded: (sessionId: string) => void;
  onEvent: (event: Omit<DoorEvent, "address" | "user">) => void;
  /** Tells the client that its turn was cut. */
  cut: (sessionId: string, message: string) => void;
}

interface Prompt {
  readonly request: ClientRequest;
  /** Prompts reach the server in the order in which they came. */
  readonly place: number;
  /** The turn that counts it as one of its own. */
  turn: Turn | undefined;
  /** Whether the server said before that it does not have the session. */
  again: boolean;
  /** How it was sent last. */
  sent: SentPrompt | undefined;
  /** Whether it was sent again because its server ended. */
  isRepeated: boolean;
  /** Whether its client has the server's answer. */
  isAnswered: boolean;
}

interface SentPrompt {
  readonly link: ServerLink;
  /** How long the session's history was before, in bytes. */
  readonly historyBytes: number;
  /** The message ids of prompts that had begun before. */
  readonly seenBefore: ReadonlySet<string>;
  /** The ids that the server's answer gave the messages in it; null before that. */
  messageIds: readonly string[] | null;
}

interface Running {
  readonly turn: Turn;
  /** Read anew when the session turns out to be on another server by the time that its turn comes. */
  record: SessionRecord;
  /** Prompts that are to be sent, in order: once the turn is theirs, and those before them were. */
  readonly waiting: Prompt[];
  /** Resolves when those that wait were sent or refused; null when that is not going on. */
  sending: Promise<void> | null;
  /** Those that were sent in this turn and not refused. */
  readonly sent: Set<Prompt>;
  /** Those whose server has ended, while it is being found out whether they had begun. Nothing is sent before that. */
  doubtful: readonly Prompt[];
  readonly abort: AbortController;
  over: Promise<void>;
}

/** How long a server may take to end, and how often it is tried again in that time, in milliseconds. */
const ENDING_MS = 2_000;
const ENDING_POLL_MS = 20;

/** The turns of one client: one at a time in each session, whoever else uses it, by the rules of `turn-taking.ts`. */
export class Turns {
  readonly #context: TurnsContext;
  readonly #running = new Map<string, Running>();
  #places = 0;
  /** Why no turn begins any more. */
  #gone: FleetError | undefined;

  constructor(context: TurnsContext) {
    this.#context = context;
  }

  /** The turn of a session that this client is in, or waits for. */
  of(sessionId: string): Turn | undefined {
    return this.#running.get(sessionId)?.turn;
  }

  /** Resolves when no turn of this client is under way. */
  async settled(): Promise<void> {
    while (this.#running.size > 0) await Promise.all([...this.#running.values()].map(({ over }) => over));
  }

  /** How many turns are under way or waited for. */
  get size(): number {
    return [...this.#running.values()].filter(({ turn }) => turn.over === null).length;
  }

  /** A prompt. Resolves when it was sent, refused, or has to wait. @throws FleetError `FLEET_TURN_FAILED` after `close`. */
  async send(request: ClientRequest, record: SessionRecord): Promise<void> {
    // It was on its way here when its client hung up: nobody is there to wait.
    if (this.#gone !== undefined) throw this.#gone;
    // Asked again: the door may have begun to close while it was looked for where the session is.
    if (this.#context.isDraining()) throw doorDraining();
    const state = { turn: undefined, again: false, sent: undefined, isRepeated: false, isAnswered: false };
    await this.#queue({ request, place: this.#places++, ...state }, record);
  }

  /** Whether prompts of the client wait for their turn in the session. */
  waits(sessionId: string): boolean {
    const running = this.#running.get(sessionId);
    return running !== undefined && isWaiting(running);
  }

  /** Resolves when all prompts of the turn that the client is in were sent or refused: what comes after them may follow. */
  async sent(sessionId: string): Promise<void> {
    await this.#running.get(sessionId)?.sending;
  }

  /** Gives up prompts that wait for their turn. @returns false when none does. */
  cancel(sessionId: string): boolean {
    const running = this.#running.get(sessionId);
    if (running === undefined || !isWaiting(running)) return false;
    this.#giveUp(
      running,
      new FleetError("FLEET_TURN_FAILED", "The prompt was cancelled while it waited for its turn."),
    );
    return true;
  }

  /** The same of all sessions, with an error of the caller's. */
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

  /** At once: a prompt that comes after that has nothing to do with these. */
  #giveUp({ turn, waiting, abort, record }: Running, error: FleetError): void {
    for (const prompt of waiting.splice(0)) this.#refuse(prompt, record, error);
    turn.end("refused");
    abort.abort(error);
  }

  /** Resolves when the prompt was sent, refused, or has to wait for a turn. */
  async #queue(prompt: Prompt, record: SessionRecord): Promise<void> {
    const running = this.#running.get(record.id);
    // After a turn that is over comes another, but not past prompts that were left over from that.
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

  /** Never rejects: what goes wrong is told to those who wait. */
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
      // The lease may have been lost after all was answered: then nobody waits, and the log has it.
      if (waiting.length === 0 && error !== signal.reason)
        onEvent({ event: "failed", sessionId: record.id, ...failure(error) });
      for (const prompt of waiting.splice(0)) this.#refuse(prompt, record, error);
      turn.end("refused");
    }
    // A turn that was cut may have left nothing on the disk, and what counts as a turn must have.
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
      const isFoundIdle = await turn.ended(async () => await this.#isIdle(running.record), isBlind);
      if (isFoundIdle) this.#context.ends.over(running.record.id);
    } finally {
      lease?.signal.removeEventListener("abort", onLost);
    }
    const { marked: server } = turn;
    if (turn.over !== "closed" || !turn.begun || server === undefined) return;
    const { config, isDraining } = this.#context;
    const times = { ttlMs: config.lock.ttlMs, answerMs: config.health.timeoutMs };
    await leftTurnOver({ server, sessionId: running.record.id, lease: lease?.signal, ...times, isDraining });
  }

  /** Sends the prompts that wait, one after the other, as long as the turn is theirs. Never rejects. */
  async #sendWaiting(running: Running): Promise<void> {
    const { turn, waiting } = running;
    // Each is the turn's from now on: one that is refused does not end it for those behind.
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

  /** The turn is over: whoever waits still has no lease and no mark any more, and needs another. */
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
      // The late holder's prompt is refused here: behind this line only the write to the socket is left.
      await turn.lease?.check();
      const [first] = waiting;
      // In the meantime the turn has ended, or one that was sent before this one has to be sent again.
      const isOvertaking = running.doubtful.length > 0 || (first !== undefined && first.place < prompt.place);
      // A write to a connection that has ended reaches nobody, and nothing reports that.
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

  /** As {@link TurnsContext.linkFor}; a server that is about to end refuses connections first and is started again then. */
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

  /** Its client has the answer to it from the server that has ended. */
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

  /** The folder of the server's, or the client's own choice, that has the session. */
  #homeOf(sessionId: string, { server }: ServerLink): string {
    const asked = this.#context.attachment(sessionId)?.asked ?? {};
    return isElsewhere(asked) ? String(asked.configDir) : server.home;
  }

  /**
   * A server has ended. Prompts that it had not begun are sent again in the same turn; one that was sent again before is not.
   *
   * @returns the sessions whose turns go on for that
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

  /** Whether the events of the session show that the server has begun with a prompt. */
  #isSeenBegun(sessionId: string, { sent }: Prompt): boolean {
    const { ends } = this.#context;
    if (sent === undefined) return false;
    if (sent.messageIds !== null) return !sent.messageIds.some((id) => ends.waitsFor(sessionId, id));
    return [...ends.seen(sessionId)].some((id) => !sent.seenBefore.has(id));
  }

  /** Sends prompts again whose server has ended, unless they had begun. Never rejects. */
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

  /** Those of the prompts that are in the session's history, with the message ids that they have there. */
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
    // The server gave these their ids and did not get to answer.
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
    // The text of the others may be recorded otherwise. A prompt must not run twice, so they count as begun.
    for (const prompt of unanswered) if (!found.has(prompt)) take(prompt, unknown.length > 0 ? 0 : -1);
    return found;
  }

  /**
   * Where sessions may change hosts: the prompt may have waited, and its session have gone meanwhile.
   *
   * @throws FleetError `FLEET_SESSION_MOVED`; `FLEET_HOST_AWAY` when this host may count as gone; `FLEET_STORAGE_UNUSABLE`.
   */
  async #assertHere({ id }: SessionRecord): Promise<void> {
    const { directory, store } = this.#context;
    if (!directory.isShared) return;
    const now = await store.readSession(id);
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
      // Not loaded, or its server has gone: in no turn. One that is slow to answer has not said so.
      return !isTimeout(error);
    }
  }

  /** A turn whose lease is lost is ended: the next holder's must not run into it. */
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

/** Where it belongs among those that wait. */
function insert(waiting: Prompt[], prompt: Prompt): void {
  const behind = waiting.findIndex(({ place }) => place > prompt.place);
  waiting.splice(behind === -1 ? waiting.length : behind, 0, prompt);
}
