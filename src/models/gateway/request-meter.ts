import { randomUUID } from "node:crypto";
import type { IncomingMessage } from "node:http";
import {
  type BegunUse,
  type Consumer,
  UNREPORTED,
  type UsageNumbers,
  type UsageRecorder,
} from "../../model/usage/usage.js";
import { AnswerUsage, modelIn } from "./answer-usage.js";

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
   * Records the end and the usage, once. Does nothing if the request never left this process. Unless the request failed,
   * estimates the numbers that the service has not reported, because an agent may cut every answer before its usage.
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
