import { randomUUID } from "node:crypto";
import type { IncomingMessage } from "node:http";
import type { BegunUse, Consumer, UsageRecorder } from "../../model/usage/usage.js";
import { AnswerUsage, modelIn } from "./answer-usage.js";

/** The user of a session's model requests, and how many of these have passed the gateway during the present turn. */
export interface MeteredConsumer extends Consumer {
  passed: number;
}

/** The consumer of each session, by its id. */
export type Consumers = ReadonlyMap<string, MeteredConsumer>;

/** Records one model request in the ledger, once, however often it has to be sent. */
export class RequestMeter {
  /** The model service gets it in a header, so that its own records can be compared with the ledger. */
  readonly id = randomUUID();
  readonly #ledger: UsageRecorder;
  readonly #consumer: MeteredConsumer;
  #begun: BegunUse | undefined;
  #usage: AnswerUsage | undefined;

  constructor(ledger: UsageRecorder, consumer: MeteredConsumer) {
    this.#ledger = ledger;
    this.#consumer = consumer;
  }

  /** Call it right before the request leaves this process. @param body null if the body is not kept */
  leaves(body: Buffer | null): void {
    if (this.#begun !== undefined) return;
    const { passed: _, ...consumer } = this.#consumer;
    this.#consumer.passed++;
    const model = (body === null ? null : modelIn(body)) ?? consumer.model;
    this.#begun = this.#ledger.begin("request", { ...consumer, model }, this.id);
  }

  /**
   * Reads the answer as it passes. Records the end when the last event of a stream is here, and before the server gets it. So
   * a turn is over only after everything that it consumed counts.
   */
  read(answer: IncomingMessage): void {
    const usage = new AnswerUsage(answer.headers["content-type"]);
    this.#usage = usage;
    answer.on("data", (piece: Buffer) => {
      usage.push(piece);
      if (usage.hasLast) this.end("ended");
    });
  }

  /** Does nothing after the first call, or if the request never left. */
  end(outcome: "ended" | "cut" | "failed"): void {
    this.#usage?.end();
    this.#begun?.end(outcome, this.#usage?.numbers);
  }
}
