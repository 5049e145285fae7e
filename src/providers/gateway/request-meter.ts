import { randomUUID } from "node:crypto";
import type { IncomingMessage } from "node:http";
import { type BegunUse, type Consumer, UNREPORTED, type UsageNumbers, type UsageRecorder } from "../../base/usage.js";
import { isObject, parseObject } from "../../base/values/text.js";

/** About how many bytes a token has. */
export const TOKEN_BYTES = 4;

/** The user for whom a session's model requests count. */
export interface MeteredConsumer extends Consumer {
  /** How many of these requests have passed the gateway during the current turn. */
  passed: number;
  /** How many turns of the session run or wait in this process. */
  turns: number;
  /** Whether model requests may follow outside of turns, because of a client's request or a task in the background. */
  isExpected: boolean;
  /** Why the last model request of the current turn has no answer; null if it has one, or if there was none. */
  trouble: string | null;
}

/**
 * Refuses a model request if the budgets of its user are used up.
 *
 * @param underWay an estimate of the tokens that the user's earlier requests will use, and that do not count so far
 * @throws FleetError `FLEET_LIMIT_REACHED`
 */
export type BudgetCheck = (user: string, isTurn: boolean, underWay: number) => Promise<void>;

/** The consumers of sessions, by session id. */
export type Consumers = ReadonlyMap<string, MeteredConsumer>;

/** Records one model request in the ledger, once, however often it has to be sent. */
export class RequestMeter {
  /**
   * The id of the request. The model service gets it in a header, so that the service's records can be compared with
   * the ledger.
   */
  readonly id = randomUUID();
  readonly #ledger: UsageRecorder;
  readonly #consumer: MeteredConsumer;
  #begun: BegunUse | undefined;
  #usage: AnswerUsage | undefined;
  #sentBytes = 0;
  #answerBytes = 0;

  constructor(ledger: UsageRecorder, consumer: MeteredConsumer) {
    this.#ledger = ledger;
    this.#consumer = consumer;
  }

  /**
   * Records the beginning, once. Call it right before the request leaves this process.
   *
   * @param request the server's request, whose body passes through if `body` is null
   */
  leaves(body: Buffer | null, request: IncomingMessage): void {
    if (this.#begun !== undefined) return;
    if (body !== null) this.#sentBytes = body.length;
    else request.on("data", (piece: Buffer) => (this.#sentBytes += piece.length));
    const { user, sessionId, tokenId } = this.#consumer;
    this.#consumer.passed++;
    const model = (body === null ? null : modelIn(body)) ?? this.#consumer.model;
    this.#begun = this.#ledger.begin("request", { user, sessionId, tokenId, model }, this.id);
  }

  /**
   * Reads the answer as it passes. Records the end of a stream when its last event arrives, before the server gets that
   * event. So everything that a turn consumed counts before the turn is over.
   */
  read(answer: IncomingMessage): void {
    const usage = new AnswerUsage(answer.headers["content-type"]);
    this.#usage = usage;
    answer.on("data", (piece: Buffer) => {
      this.#answerBytes += piece.length;
      usage.push(piece);
      if (usage.hasLast) this.end("completed");
    });
  }

  /**
   * Records the end and the usage, once. Does nothing if the request never left this process. Unless the request
   * failed, estimates the numbers that the service has not reported, because an agent may cut every answer before its
   * usage.
   */
  end(outcome: "completed" | "cut" | "failed"): void {
    this.#usage?.end();
    const numbers = this.#usage?.numbers;
    this.#begun?.end(outcome, outcome === "failed" ? numbers : this.#estimated(numbers));
  }

  #estimated(reported: UsageNumbers = UNREPORTED): UsageNumbers {
    return {
      ...reported,
      inputTokens: reported.inputTokens ?? Math.ceil(this.#sentBytes / TOKEN_BYTES),
      outputTokens: reported.outputTokens ?? Math.ceil(this.#answerBytes / TOKEN_BYTES),
    };
  }
}

/** How many bytes of an unfinished line are kept for reading its usage. Further pieces of the line are dropped. */
const LONGEST_LINE = 16 * 1024 * 1024;
const NEWLINE = 0x0a;
/** Matches the usage in an event. It must not match `"usage":null`, which events before the usage have. */
const USAGE = /"usage"\s*:\s*\{/;
/** Matches the last event of a stream of OpenAI's completions, OpenAI's responses or Anthropic's messages. */
const LAST = /^data:\s*(?:\[DONE\]|\{[^{]*"type"\s*:\s*"(?:response\.(?:completed|incomplete|failed)|message_stop)")/;

/**
 * Reads the usage from a model service's answer, piece by piece as the answer passes. Keeps only the unfinished line of
 * a stream, or a complete answer in JSON.
 */
export class AnswerUsage {
  readonly #isStream: boolean;
  #rest: Buffer[] = [];
  #restBytes = 0;
  /** A number is null if the service has not reported it. */
  numbers: UsageNumbers = UNREPORTED;
  /** Whether the last event of the stream has arrived. */
  hasLast = false;

  /** @param contentType the answer's header `Content-Type` */
  constructor(contentType: string | undefined) {
    this.#isStream = contentType?.startsWith("text/event-stream") === true;
  }

  push(piece: Buffer): void {
    const end = this.#isStream ? piece.lastIndexOf(NEWLINE) + 1 : 0;
    if (end === 0) {
      this.#keep(piece);
      return;
    }
    const whole = piece.subarray(0, end);
    this.#read(this.#restBytes === 0 ? whole : Buffer.concat([...this.#rest, whole]));
    this.#rest = [];
    this.#restBytes = 0;
    if (end < piece.length) this.#keep(piece.subarray(end));
  }

  /** Reads the rest after the last complete line. Call it when the answer has ended. */
  end(): void {
    if (this.#restBytes > 0) this.#read(Buffer.concat(this.#rest));
    this.#rest = [];
    this.#restBytes = 0;
  }

  #keep(piece: Buffer): void {
    if (this.#restBytes + piece.length > LONGEST_LINE) return;
    this.#rest.push(piece);
    this.#restBytes += piece.length;
  }

  #read(bytes: Buffer): void {
    const text = bytes.toString("utf8");
    if (!this.#isStream) {
      if (USAGE.test(text)) this.#take(text);
      return;
    }
    for (const line of text.split("\n")) {
      if (!line.startsWith("data:")) continue;
      if (USAGE.test(line)) this.#take(line.slice("data:".length));
      if (LAST.test(line)) this.hasLast = true;
    }
  }

  #take(json: string): void {
    const value = parseObject(json); // a text may only look like usage
    const usage = value === undefined ? null : usageIn(value);
    if (usage === null) return;
    const known = this.numbers;
    // Keep known numbers, because Anthropic reports the input first and the output last.
    this.numbers = {
      inputTokens: usage.inputTokens ?? known.inputTokens,
      outputTokens: usage.outputTokens ?? known.outputTokens,
      cacheReadTokens: usage.cacheReadTokens ?? known.cacheReadTokens,
      credits: null,
    };
  }
}

/**
 * The usage in an answer or an event: at the top level (completions), in `response` (responses), or in `message`
 * (Anthropic's messages). Null if there is none. Anthropic's `input_tokens` do not include the tokens that its cache
 * served or stored. The runtime (1.0.85) adds them, and so does this function.
 */
function usageIn(value: Record<string, unknown>): Omit<UsageNumbers, "credits"> | null {
  const holder = [value, value.response, value.message].find((each) => isObject(each) && isObject(each.usage));
  const usage = (holder as { usage?: Record<string, unknown> } | undefined)?.usage;
  if (usage === undefined) return null;
  const details = usage.prompt_tokens_details ?? usage.input_tokens_details;
  const cached = isObject(details) ? count(details.cached_tokens) : null;
  const read = count(usage.cache_read_input_tokens);
  const beside = (read ?? 0) + (count(usage.cache_creation_input_tokens) ?? 0);
  const input = count(usage.input_tokens);
  return {
    inputTokens: count(usage.prompt_tokens) ?? (input === null ? null : input + beside),
    // Anthropic's `message` is the beginning of an answer, so its output tokens are not those of the answer.
    outputTokens: holder === value.message ? null : (count(usage.completion_tokens) ?? count(usage.output_tokens)),
    cacheReadTokens: cached ?? read,
  };
}

function count(value: unknown): number | null {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0 ? value : null;
}

const MODEL = Buffer.from('"model":');
/** In how many places a model is searched. An agent can send a body that has millions. */
const MOST_PLACES = 1_000;

/** The model in the body of a request; null if none is found. Does not parse the body, because it may be large. */
export function modelIn(body: Buffer): string | null {
  let left = MOST_PLACES;
  for (let at = body.indexOf(MODEL); at !== -1 && left-- > 0; at = body.indexOf(MODEL, at + 1)) {
    // Skip a match inside a string, where a backslash precedes each quote. A quote after one of these characters begins
    // a key.
    if (!"{, \n".includes(String.fromCharCode(body[at - 1] ?? 0))) continue;
    const name = /^\s*("(?:[^"\\]|\\.)*")/.exec(body.toString("utf8", at + MODEL.length, at + MODEL.length + 300))?.[1];
    // The name may be no valid JSON, because an agent may send anything.
    if (name !== undefined) return (parseObject(`{"name":${name}}`)?.name as string | undefined) ?? null;
  }
  return null;
}
