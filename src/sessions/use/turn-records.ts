import type { SessionEvent } from "@github/copilot-sdk";
import { isTimeout } from "../../base/clock.js";
import { isFleetError } from "../../base/errors.js";
import type { EventLog, NewEvent } from "../../base/event.js";
import type { ServerRecord } from "../../base/server.js";
import type { SessionRecord, TurnOutcome, TurnUsage } from "../../base/session.js";
import { type BegunUse, type Consumer, creditsIn, type UsageNumbers } from "../../base/usage.js";
import type { TurnReply } from "../../runtime/client/turn.js";
import type { SessionsContext } from "../problems.js";

type MeterContext = Pick<SessionsContext, "ledger" | "config" | "provider">;

interface TurnRequest {
  record: SessionRecord;
  user: string;
  tokenId?: string | undefined;
  isTurn: boolean;
}

/** The part of `assistant.usage` that is counted. */
interface UsageData {
  model?: unknown;
  inputTokens?: unknown;
  outputTokens?: unknown;
  cacheReadTokens?: unknown;
  copilotUsage?: { totalNanoAiu?: unknown } | undefined;
}

/**
 * Records the turn of one use of a session in the ledger. The turn counts once the server has begun its prompt. If no
 * model gateway of this process passes on the turn's model requests, also counts them, from the runtime's events.
 */
export class MeteredTurn implements Disposable {
  readonly consumer: Consumer;
  readonly #context: MeterContext;
  readonly #isTurn: boolean;
  #begun: BegunUse | undefined;
  #isOver = false;

  constructor(context: MeterContext, { record, user, tokenId = undefined, isTurn }: TurnRequest) {
    const model = record.model ?? context.config.session.model;
    this.consumer = { user, sessionId: record.id, model, tokenId: tokenId ?? null };
    this.#context = context;
    this.#isTurn = isTurn;
  }

  /** Records that the server has begun the turn's prompt. @param id the prompt's message id, if it is known */
  began(id?: string): void {
    if (this.#isTurn && !this.#isOver) this.#begun ??= this.#context.ledger.begin("turn", this.consumer, id);
  }

  /** Records how the turn ended. Also records its beginning, if that is missing. */
  ended(outcome: TurnOutcome): void {
    this.began();
    this.#begun?.end(outcome);
  }

  /** Receives each event of this turn. */
  saw(event: SessionEvent): void {
    if (event.type === "user.message" && event.agentId === undefined) this.began(event.data.messageId ?? event.id);
    if (event.type === "assistant.usage") this.consumed(event.data);
    if (BACKGROUND.has(event.type)) this.#context.provider.expectRequests(this.consumer.sessionId);
  }

  /** Counts a model request that no gateway of this process has passed on. */
  consumed(data: UsageData): void {
    const { ledger, provider } = this.#context;
    if (!this.#isTurn || provider.hasPassed(this.consumer.sessionId)) return;
    const model = typeof data.model === "string" ? data.model : this.consumer.model;
    ledger.completed({ ...this.consumer, model }, numbersOf(data));
  }

  /** Ends the use. If nobody has recorded how the turn ended, records it as cut. */
  [Symbol.dispose](): void {
    this.#isOver = true;
    this.#begun?.end("cut");
  }
}

/** The events after which the runtime (1.0.85) may ask the model when the turn is over. */
export const BACKGROUND: ReadonlySet<string> = new Set(["subagent.started", "session.background_tasks_changed"]);

function numbersOf({ inputTokens, outputTokens, cacheReadTokens, copilotUsage }: UsageData): UsageNumbers {
  return {
    inputTokens: countOf(inputTokens),
    outputTokens: countOf(outputTokens),
    cacheReadTokens: countOf(cacheReadTokens),
    credits: creditsIn(copilotUsage?.totalNanoAiu),
  };
}

function countOf(value: unknown): number | null {
  return Number.isSafeInteger(value) && (value as number) >= 0 ? (value as number) : null;
}

/** The codes of errors after which a turn counts as cut. */
const CUT: ReadonlySet<string> = new Set(["FLEET_TURN_CUT", "FLEET_SERVER_LOST", "FLEET_SERVER_UNREACHABLE"]);

/** How a turn ended. */
interface TurnEnding {
  outcome: TurnOutcome;
  /** Why: the code of an error, or a word. Null for the usual end. */
  reason: string | null;
}

/** How a turn ended that failed with this error. @param signal with which the user cancels the turn */
export function endingOf(error: unknown, signal: AbortSignal | undefined): TurnEnding {
  const code = isFleetError(error) ? error.code : isTimeout(error) ? "FLEET_TURN_TIMEOUT" : null;
  const isCancelled = signal?.aborted === true && error === signal.reason && !isTimeout(error);
  if (isCancelled) return { outcome: "aborted", reason: code };
  return { outcome: code !== null && CUT.has(code) ? "cut" : "failed", reason: code ?? "FLEET_INTERNAL" };
}

interface Where {
  record: Pick<SessionRecord, "id">;
  server: Pick<ServerRecord, "id">;
}

/** Adds the beginning and the end of one turn to the audit log, without the turn's content. */
export class TurnEvents {
  readonly #events: EventLog;
  readonly #about: Pick<NewEvent, "actor" | "user" | "sessionId" | "serverId">;

  /** Adds to the audit log that the user's turn begins. */
  constructor(events: EventLog, user: string, { record, server }: Where) {
    this.#events = events;
    this.#about = { actor: { user }, user, sessionId: record.id, serverId: server.id };
    events.note({ type: "turn.begun", ...this.#about });
  }

  ended({ outcome, reason }: { outcome: TurnOutcome | "refused"; reason: string | null }): void {
    const type = outcome === "cut" ? "turn.cut" : "turn.ended";
    this.#events.note({ type, ...this.#about, outcome, reason });
  }
}

/**
 * The reply of a turn that has begun. It is a promise of the whole reply, and an async iterable of its pieces.
 *
 * ```ts
 * for await (const piece of fleet.sessions.send(session, "Hello")) show(piece);
 * ```
 *
 * A loop gets the whole reply, even if the loop begins late. Each piece contains everything that arrived since the
 * piece before. If the turn fails, the loop throws the turn's error. Leaving the loop does not end the turn. To end it,
 * abort `signal`.
 */
export class PendingReply<T extends TurnReply> extends Promise<T> implements AsyncIterable<string> {
  static override get [Symbol.species](): PromiseConstructor {
    return Promise;
  }

  readonly #pieces: Pieces;

  /** @param take begins the turn, and calls its argument with each piece of the reply */
  constructor(take: (onDelta: (text: string) => void) => Promise<T>) {
    const pieces = new Pieces();
    super((resolve) => resolve(take((text) => pieces.add(text)).finally(() => pieces.end())));
    this.#pieces = pieces;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<string, void, undefined> {
    // Mark the rejection as handled. `await this` below throws it to the loop.
    this.catch(() => undefined);
    yield* this.#pieces.read();
    const { text } = await this;
    if (this.#pieces.isEmpty && text !== "") yield text;
  }
}

/** The text that has arrived so far. Any number of readers can read it, each at its own pace. */
class Pieces {
  #text = "";
  #ended = false;
  #waiting: (() => void)[] = [];

  get isEmpty(): boolean {
    return this.#text === "";
  }

  add(text: string): void {
    this.#text += text;
    this.#wake();
  }

  end(): void {
    this.#ended = true;
    this.#wake();
  }

  async *read(): AsyncGenerator<string, void, undefined> {
    let at = 0;
    for (;;) {
      if (at < this.#text.length) {
        const piece = this.#text.slice(at);
        at = this.#text.length;
        yield piece;
      } else if (this.#ended) return;
      else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
  }

  #wake(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const resolve of waiting) resolve();
  }
}

/** Collects the id of a turn, and the turn's usage as the model service reports it. */
export class TurnWatch {
  /** Null until the turn has begun. */
  turn: string | null = null;
  readonly usage: TurnUsage = { requests: 0, inputTokens: 0, outputTokens: 0, cacheReadTokens: 0, credits: null };

  push(event: SessionEvent): void {
    if (event.type === "user.message") this.turn ??= event.data.messageId ?? event.id;
    if (event.type !== "assistant.usage") return;
    const { inputTokens = 0, outputTokens = 0, cacheReadTokens = 0, copilotUsage } = event.data;
    const credits = creditsIn(copilotUsage?.totalNanoAiu);
    this.usage.requests++;
    this.usage.inputTokens += inputTokens;
    this.usage.outputTokens += outputTokens;
    this.usage.cacheReadTokens += cacheReadTokens;
    if (credits !== null) this.usage.credits = (this.usage.credits ?? 0) + credits;
  }
}
