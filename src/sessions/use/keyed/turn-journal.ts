import { setTimeout as delay } from "node:timers/promises";
import type { SessionEvent } from "@github/copilot-sdk";
import { type FleetError, isFleetError } from "../../../errors.js";
import type { KeyedTurn, SessionRecord } from "../../../model/session.js";
import type { TurnReply } from "../../../runtime/client/turn.js";
import { NEVER } from "../../../runtime/clock.js";
import type { KeyedTurnStore } from "../../../store/ports.js";
import { isStoreTrouble, keyReused, storedEnd, turnWasCut } from "../../problems.js";
import type { OpenSession } from "../open-session.js";
import { TurnWatch } from "../reply.js";
import { makeRoom, TTL_MS } from "./expiry.js";
import { RecordedTurn } from "./recorded-turn.js";

/** The recorded events of sessions on all hosts. `RecordedEvents` in `peers/sessions/` implements this. */
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
  store: KeyedTurnStore;
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

/** The record of the request's key. Null if there is none, or if it has expired. @throws FleetError `FLEET_IDEMPOTENCY_KEY_REUSED`. */
export async function readKeyed(
  store: KeyedTurnStore,
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
