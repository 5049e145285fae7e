import { setTimeout as delay } from "node:timers/promises";
import type { SessionEvent } from "@github/copilot-sdk";
import { abortable, either, NEVER, pause } from "../../base/clock.js";
import { FleetError, isFleetError } from "../../base/errors.js";
import { newSessionId } from "../../base/ids.js";
import type { KeyedTurn, SessionRecord, TurnOutcome, TurnUsage } from "../../base/session.js";
import { sha256 } from "../../base/values/text.js";
import type { TurnReply } from "../../runtime/client/turn.js";
import { TurnTracker } from "../../runtime/history/turn-tracker.js";
import type { Store } from "../../store/store.js";
import type { KeyedTurnTable } from "../../store/tokens.js";
import { historyLacksTurn, isStoreTrouble, keyReused, recordedFailure, storedEnd, turnWasCut } from "../problems.js";
import type { SessionView } from "../view.js";
import type { OpenSession } from "./open-session.js";
import { TurnWatch } from "./turn-records.js";

/** The recorded events of sessions on all hosts. `RecordedEvents` in `hosts/sessions/` implements this. */
export interface Histories {
  events(id: string, options: { user: string; follow?: boolean; signal?: AbortSignal }): AsyncIterable<SessionEvent>;
}

export interface KeyedRequest {
  user: string;
  key: string;
  sessionId: string;
  prompt: string;
  digest: string;
  onEvent: (event: SessionEvent) => void;
  signal: AbortSignal;
}

export interface JournalContext {
  store: KeyedTurnTable;
  histories: Histories;
  warn: (message: string) => void;
}

/** How long the first model request waits until the store has recorded that the prompt began, in milliseconds. */
const BEGIN_MS = 2_000;

/** The errors that show how a turn ended. After any other error, the next request looks into the session's history. */
const ENDS = [
  "FLEET_TURN_FAILED",
  "FLEET_TURN_TIMEOUT",
  "FLEET_CREDENTIAL_REFUSED",
  "FLEET_SERVER_LOST",
  "FLEET_TURN_CUT",
] as const;

/**
 * Records the turn of one request with an idempotency key, so that the prompt is sent only once. The record shows the
 * next process what has happened. It does not exclude two processes: the caller's use of the session does that.
 */
export class TurnJournal {
  readonly #context: JournalContext;
  readonly #request: KeyedRequest;
  readonly #watch = new TurnWatch();
  /** The record as it was when the use of the session began. */
  #known: KeyedTurn | null = null;
  #sessionCreatedAt = "";
  #hasSent = false;

  constructor(context: JournalContext, request: KeyedRequest) {
    this.#context = context;
    this.#request = request;
  }

  /** Whether the prompt was sent through this journal. Otherwise, the turn was found in the history. */
  get hasSent(): boolean {
    return this.#hasSent;
  }

  /**
   * Whether another request has run the turn to its end. Call it when nobody else can begin a turn in the session.
   *
   * @throws FleetError `FLEET_IDEMPOTENCY_KEY_REUSED`.
   */
  async isOver({ createdAt }: SessionRecord): Promise<boolean> {
    this.#sessionCreatedAt = createdAt;
    this.#known = await readKeyed(this.#context.store, this.#request);
    if (this.#known !== null && this.#known.sessionCreatedAt !== createdAt) throw keyReused(this.#request.key);
    return this.#known !== null && this.#known.outcome !== null;
  }

  /**
   * Runs the turn, or finds it in the session's history.
   *
   * @param take sends the prompt, and calls its argument with each event of the turn
   */
  async run(
    open: OpenSession,
    take: (onEvent: (event: SessionEvent) => void) => Promise<TurnReply>,
  ): Promise<TurnReply> {
    if (this.#known !== null) {
      const messageId = await this.#find(open, this.#known);
      if (messageId !== null) return await this.#recall({ ...this.#known, messageId });
    }
    let record = await this.#begin((await open.history()).bytes);
    this.#hasSent = true;
    let noted: Promise<void> | undefined;
    let onBegin = (): void => undefined;
    const begun = new Promise<void>((resolve) => {
      onBegin = resolve;
    });
    const onEvent = (event: SessionEvent) => {
      this.#watch.push(event);
      if (record.messageId === null && this.#watch.turn !== null) {
        record = { ...record, messageId: this.#watch.turn };
        noted = this.#note(record);
        noted.then(onBegin, onBegin);
      }
      this.#request.onEvent(event);
    };
    // Let the first model request wait for the record. The runtime (1.0.85) writes a prompt to the history up to 0.1 s
    // after it has asked the model. If it is killed together with this process before it has written the prompt, only
    // the record shows that the prompt has begun.
    using _ = open.beforeRequests(async () => await Promise.race([begun, delay(BEGIN_MS, undefined, { ref: false })]));
    try {
      const reply = await take(onEvent);
      await noted;
      await this.#note({ ...record, usage: this.#watch.usage, outcome: "answered" });
      return reply;
    } catch (thrown) {
      await noted;
      // A repetition of this request gets this end again, although another prompt may succeed.
      const isFinal = record.messageId !== null && isFleetError(thrown, "FLEET_MODEL_UNAVAILABLE");
      const error = isFinal ? storedEnd({ code: "FLEET_TURN_FAILED", message: thrown.message }) : thrown;
      if (record.messageId !== null) throw await this.#end(record, error);
      if (isFleetError(error, "FLEET_TURN_FAILED")) await this.#forget(open, record);
      throw error;
    }
  }

  /** Frees the key of a prompt that no server has begun. */
  async #forget(open: OpenSession, record: KeyedTurn): Promise<void> {
    const { user, key } = this.#request;
    try {
      if ((await this.#find(open, record)) === null) await this.#context.store.delete(user, key);
    } catch {
      // The next request with the key looks into the history again.
    }
  }

  /** Records that the prompt is about to be sent. */
  async #begin(sentAtBytes: number): Promise<KeyedTurn> {
    const { store } = this.#context;
    const { user, key, sessionId, digest } = this.#request;
    const expiresAt = this.#known?.expiresAt ?? new Date(Date.now() + TTL_MS).toISOString();
    const record: KeyedTurn = {
      ...{ user, key, sessionId, digest, expiresAt, sentAtBytes },
      ...{ sessionCreatedAt: this.#sessionCreatedAt, messageId: null, usage: null, outcome: null },
    };
    if (this.#known !== null) {
      await store.replace(record);
      return record;
    }
    await makeRoom(store, user);
    // Only a request for another session can have created the record first, because nobody else uses this session now.
    if (!(await store.create(record))) throw keyReused(key);
    return record;
  }

  /** The message id of the prompt that an earlier process was about to send. Null if no server has begun the prompt. */
  async #find(open: OpenSession, known: KeyedTurn): Promise<string | null> {
    const { user, key, prompt, signal } = this.#request;
    await open.settled(signal);
    if (known.messageId !== null) return known.messageId;
    const { prompts } = await open.history(known.sentAtBytes);
    const others = (await this.#context.store.list(user)).filter((each) => each.key !== key);
    const taken = new Set(others.map(({ messageId }) => messageId));
    const isOurs = ({ content, messageId }: (typeof prompts)[number]) =>
      content === prompt && messageId !== undefined && !taken.has(messageId);
    return prompts.find(isOurs)?.messageId ?? null;
  }

  /** The reply of a turn that another process has begun. */
  async #recall(record: KeyedTurn): Promise<TurnReply> {
    try {
      const reply = await recall(this.#context.histories, record, this.#request);
      await this.#note({ ...record, outcome: "answered" });
      return reply;
    } catch (error) {
      // The server may have died after it began the prompt, and before it wrote the prompt to the history.
      const end = isFleetError(error, "FLEET_SESSION_LOST") ? turnWasCut(record.sessionId) : error;
      throw await this.#end(record, end);
    }
  }

  /** Records how the turn ended, if the error shows it. @returns the error for this request and for each later one */
  async #end(record: KeyedTurn, error: unknown): Promise<unknown> {
    if (!ENDS.some((code) => isFleetError(error, code))) return error;
    const { code, message } = error as FleetError;
    await this.#note({
      ...record,
      usage: this.#watch.turn === null ? null : this.#watch.usage,
      outcome: { code, message },
    });
    return storedEnd({ code, message }, error);
  }

  /**
   * Records the state of the turn. If the store fails, only warns, because the next request with the key finds the turn
   * in the history.
   */
  async #note(record: KeyedTurn): Promise<void> {
    try {
      await this.#context.store.replace(record);
    } catch (error) {
      if (!isStoreTrouble(error)) throw error;
      this.#context.warn(`The state of a turn with an idempotency key could not be recorded: ${error.message}`);
    }
  }
}

/**
 * The record of the request's key. Null if there is none, or if it has expired. @throws FleetError
 * `FLEET_IDEMPOTENCY_KEY_REUSED`.
 */
export async function readKeyed(
  store: KeyedTurnTable,
  { user, key, digest }: Pick<KeyedRequest, "user" | "key" | "digest">,
): Promise<KeyedTurn | null> {
  const record = await store.read(user, key);
  if (record === null) return null;
  if (Date.parse(record.expiresAt) < Date.now()) {
    await store.delete(user, key);
    return null;
  }
  if (record.digest !== digest) throw keyReused(key);
  return record;
}

/** Reads a finished turn from its session's history. @throws FleetError as {@link RecordedTurn.end}. */
export async function recall(
  histories: Histories,
  { sessionId, messageId }: Pick<KeyedTurn, "sessionId" | "messageId">,
  { user, onEvent, signal = NEVER }: Pick<KeyedRequest, "user" | "onEvent" | "signal">,
): Promise<TurnReply> {
  const turn = new RecordedTurn(sessionId, messageId ?? "");
  for await (const event of histories.events(sessionId, { user, signal })) {
    if (turn.push(event)) onEvent(event);
    if (turn.isOver) break;
  }
  return turn.end();
}

const POLL_MS = 250;

/** A request with a key. Other requests with the key must have the same session, prompt, timeout and attachments. */
export interface Asked {
  user: string;
  key: string;
  sessionId: string;
  prompt: string;
  timeoutMs: number | undefined;
  attachments?: unknown;
  onEvent: ((event: SessionEvent) => void) | undefined;
  signal: AbortSignal;
}

/** The reply of a turn that another request has run. */
interface Recalled {
  reply: TurnReply;
  turn: string;
  usage: TurnUsage | null;
  session: null;
}

/**
 * Runs the turns of requests with idempotency keys. A user's requests with the same key share one turn: the first
 * request runs the turn, and the other requests wait for its end and get the same reply. After a crash, the next
 * request with the key looks into the session's history. If the history has the prompt, the prompt is not sent again.
 */
export class KeyedTurns {
  readonly #context: JournalContext;
  /** The requests that this process works on, by user and key. The promises never reject. */
  readonly #running = new Map<string, Promise<unknown>>();

  constructor(context: JournalContext) {
    this.#context = context;
  }

  /**
   * Runs the turn of a request. If another request with the key has run the turn, returns the reply of that turn.
   *
   * @param take uses the session, and runs the turn through the journal. Resolves with null if the journal shows that
   * the turn is over.
   * @throws FleetError `FLEET_IDEMPOTENCY_KEY_REUSED`; the error of the turn, even if another request has run it.
   */
  async use<T>(asked: Asked, take: (journal: TurnJournal) => Promise<T | null>): Promise<T | Recalled> {
    const request = requestOf(asked);
    const name = JSON.stringify([asked.user, asked.key]);
    for (;;) {
      const known = await readKeyed(this.#context.store, request);
      if (known !== null && known.outcome !== null) return await this.#answer(known, request);
      const running = this.#running.get(name);
      if (running !== undefined) {
        await this.#following(request, abortable(running, request.signal));
        continue;
      }
      const attempt = take(new TurnJournal(this.#context, request));
      const settled = attempt.then(
        () => undefined,
        () => undefined,
      );
      this.#running.set(name, settled);
      try {
        const used = await (known === null ? attempt : this.#following(request, attempt));
        if (used !== null) return used;
      } catch (error) {
        // Another process is running the turn, so look again after a pause.
        if (known === null || !isInUse(error)) throw error;
        await pause(POLL_MS, request.signal);
      } finally {
        if (this.#running.get(name) === settled) this.#running.delete(name);
      }
    }
  }

  async #answer(known: KeyedTurn, request: KeyedRequest): Promise<Recalled> {
    const { outcome, usage, messageId } = known;
    if (outcome !== null && outcome !== "answered") throw storedEnd(outcome);
    const reply = await recall(this.#context.histories, known, request);
    return { reply, turn: messageId ?? "", usage, session: null };
  }

  /** Waits for a turn that another request has begun, and passes its recorded events to this request's listener. */
  async #following<T>(request: KeyedRequest, turn: Promise<T>): Promise<T> {
    const over = new AbortController();
    using end = either(over.signal, request.signal);
    const following = this.#follow(request, end.signal).catch(() => "the caller gets the rest from the history");
    try {
      return await turn;
    } finally {
      over.abort();
      await following;
    }
  }

  async #follow(request: KeyedRequest, signal: AbortSignal): Promise<void> {
    const { store, histories } = this.#context;
    const { user, sessionId, onEvent } = request;
    let messageId: string | null | undefined;
    while (messageId == null) {
      await pause(POLL_MS, signal);
      messageId = (await readKeyed(store, request))?.messageId;
    }
    const turn = new RecordedTurn(sessionId, messageId);
    for await (const event of histories.events(sessionId, { user, follow: true, signal })) {
      if (turn.push(event)) onEvent(event);
      if (turn.isOver) return;
    }
  }
}

/** A request whose listener gets each event only once, even if the event comes from both the turn and the history. */
function requestOf({ user, key, sessionId, prompt, timeoutMs, attachments, onEvent, signal }: Asked): KeyedRequest {
  const seen = new Set<string>();
  return {
    ...{ user, key, sessionId, prompt, signal },
    digest: sha256(JSON.stringify([sessionId, prompt, timeoutMs ?? null, attachments ?? null])),
    onEvent: (event) => {
      if (seen.has(event.id)) return;
      seen.add(event.id);
      onEvent?.(event);
    },
  };
}

function isInUse(error: unknown): boolean {
  return isFleetError(error, "FLEET_SESSION_LOCKED") || isFleetError(error, "FLEET_SESSION_BUSY");
}

export interface Creation {
  user: string;
  key: string;
  /** Everything that the request asks for. Another request with the same key must ask for the same. */
  content: { sessionId?: string };
  /** Creates the session with this id. */
  create: (id: string) => Promise<SessionView>;
  /** @throws FleetError `FLEET_SESSION_NOT_FOUND` */
  get: (id: string) => Promise<SessionView>;
}

/** After these errors, there is certainly no new session, so the key becomes free again. */
const REFUSALS: readonly FleetError["code"][] = ["FLEET_SESSION_EXISTS", "FLEET_LIMIT_REACHED", "FLEET_USAGE_INVALID"];

/**
 * Creates the session of a request with an idempotency key. The user's requests with the same key create only one
 * session, on any host and even after a crash, because its id is recorded before it is created.
 *
 * @throws FleetError `FLEET_IDEMPOTENCY_KEY_REUSED`; `FLEET_SESSION_NOT_FOUND` when the session was deleted; the error
 * of `create`.
 */
export async function createKeyed(
  store: KeyedTurnTable,
  { user, key, content, create, get }: Creation,
): Promise<SessionView> {
  const digest = sha256(JSON.stringify(["session", content]));
  const known = await readKeyed(store, { user, key, digest });
  if (known !== null && known.outcome !== null) return await get(known.sessionId);
  const record = known ?? newRecord(user, key, digest, content.sessionId ?? newSessionId());
  if (known === null) {
    await makeRoom(store, user);
    // Another request has just recorded the key, and may still be at work. Start again with its record.
    if (!(await store.create(record))) return await createKeyed(store, { user, key, content, create, get });
  }
  const session = await createOnce(record, { create, get }).catch(async (error: unknown) => {
    if (REFUSALS.some((code) => isFleetError(error, code))) await store.delete(user, key);
    throw error;
  });
  await store.replace({ ...record, outcome: "answered" });
  return session;
}

/** Creates the session, or finds the one that another request with the same key has created. */
async function createOnce(
  { sessionId, sessionCreatedAt }: KeyedTurn,
  { create, get }: Pick<Creation, "create" | "get">,
): Promise<SessionView> {
  try {
    return await create(sessionId);
  } catch (error) {
    if (!isFleetError(error, "FLEET_SESSION_EXISTS")) throw error;
    const there = await get(sessionId).catch(() => null);
    if (there === null || there.createdAt < sessionCreatedAt) throw error; // it was there before the request
    return there;
  }
}

/** @returns a record whose `sessionCreatedAt` is the earliest time at which the session can be created */
function newRecord(user: string, key: string, digest: string, sessionId: string): KeyedTurn {
  const now = Date.now();
  const sessionCreatedAt = new Date(now).toISOString();
  const expiresAt = new Date(now + TTL_MS).toISOString();
  const untouched = { sentAtBytes: 0, messageId: null, usage: null, outcome: null };
  return { user, key, sessionId, sessionCreatedAt, digest, expiresAt, ...untouched };
}

/** Finds one turn in the recorded events of its session, with its reply and its outcome. */
export class RecordedTurn {
  readonly #sessionId: string;
  readonly #messageId: string;
  readonly #tracker = new TurnTracker();
  readonly #reply: TurnReply = { text: "", event: undefined, outcome: "completed" };
  #hasBegun = false;
  #outcome: TurnOutcome | null = null;
  #failure = "";

  /** @param messageId the id of the prompt */
  constructor(sessionId: string, messageId: string) {
    this.#sessionId = sessionId;
    this.#messageId = messageId;
  }

  get isOver(): boolean {
    return this.#outcome !== null;
  }

  /** Receives the session's events one by one, in their order. @returns whether the event belongs to the turn */
  push(event: SessionEvent): boolean {
    if (this.isOver) return false;
    const { type, data } = event;
    const agentId = "agentId" in event ? (event.agentId ?? null) : null;
    if (!this.#hasBegun) {
      if (type !== "user.message" || data.messageId !== this.#messageId) return false;
      this.#hasBegun = true;
    }
    const atMs = Date.parse(event.timestamp);
    const ended = this.#tracker.push({ type, agentId, atMs, data: data as Record<string, unknown> });
    // The event that begins the next turn, or loads the session again, shows that this turn has ended.
    const isNext = ended !== null && (type === "user.message" || type === "session.start" || type === "session.resume");
    this.#outcome = ended?.outcome ?? null;
    if (isNext) return false;
    if (type === "assistant.message" && agentId === null && data.content !== "") {
      this.#reply.text = data.content;
      this.#reply.event = event;
    }
    if (type === "session.error") this.#failure = data.message;
    return true;
  }

  /**
   * Returns the reply. Call it after {@link push} has received all events of the session, and while nothing is at work
   * in the session. The reply of an aborted turn is the text that the model had written before the abort.
   *
   * @throws FleetError `FLEET_TURN_FAILED`; `FLEET_SERVER_LOST` when the turn was cut; `FLEET_SESSION_LOST` when the
   * history does not have the turn.
   */
  end(): TurnReply {
    const outcome = this.#outcome ?? this.#tracker.close(Date.now())?.outcome ?? null;
    const error = this.#errorOf(outcome);
    if (error !== null) throw error;
    if (outcome === "aborted") this.#reply.outcome = outcome;
    return this.#reply;
  }

  #errorOf(outcome: TurnOutcome | null): FleetError | null {
    if (outcome === null) return historyLacksTurn(this.#sessionId);
    if (outcome === "failed") return recordedFailure(this.#sessionId, this.#failure);
    return outcome === "cut" ? turnWasCut(this.#sessionId) : null;
  }
}

/** How long a key is valid, in milliseconds. */
export const TTL_MS = 24 * 3_600_000;
/** How many keys a user may have. Beyond that, a new key replaces the oldest keys whose turns are over. */
const MOST_OF_USER = 1_000;
/** How many old keys to remove at once, so that the fleet does not have to read all keys for every new key. */
const ROOM = 100;

/**
 * Makes room for another key of the user.
 *
 * @throws FleetError `FLEET_LIMIT_REACHED` when too many of the user's keys belong to turns that are not over.
 */
export async function makeRoom(store: Store["keyedTurns"], user: string): Promise<void> {
  const count = await store.count(user);
  if (count < MOST_OF_USER) return;
  const over = (await store.list(user)).filter(
    ({ outcome, expiresAt }) => outcome !== null || Date.parse(expiresAt) < Date.now(),
  );
  const oldest = over.sort((a, b) => Date.parse(a.expiresAt) - Date.parse(b.expiresAt)).slice(0, ROOM);
  for (const { key } of oldest) await store.delete(user, key);
  if (count - oldest.length < MOST_OF_USER) return;
  const message = `The user has ${MOST_OF_USER} idempotency keys whose turns are not over, which is the limit.`;
  throw new FleetError("FLEET_LIMIT_REACHED", message, { suggestions: ["Wait until these turns are over."] });
}

/** Deletes the expired keys of all users. */
export async function sweepKeyedTurns({ keyedTurns }: Pick<Store, "keyedTurns">): Promise<void> {
  for (const { user, key, expiresAt } of await keyedTurns.list(null))
    if (Date.parse(expiresAt) < Date.now()) await keyedTurns.delete(user, key);
}
