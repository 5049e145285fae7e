import { randomUUID } from "node:crypto";
import type { LedgerLine, UsageNumbers } from "../../model/usage/usage.js";
import type { UsageStore } from "../../store/usage/port.js";

/** The user of a session, with the model and the credential. */
export type Consumer = Pick<LedgerLine, "user" | "sessionId" | "model" | "tokenId">;

export const UNREPORTED: UsageNumbers = {
  inputTokens: null,
  outputTokens: null,
  cacheReadTokens: null,
  credits: null,
};

/** How many lines wait at most while the disk is full. */
const MOST_WAITING = 100_000;

interface LedgerContext {
  usage: UsageStore;
  /** The name of this host; null in a fleet without named hosts. */
  host: string | null;
  warn: (message: string) => void;
}

/** Records the turns and the model requests of this process, each once. */
export class Ledger {
  readonly #context: LedgerContext;
  /** Lines that the disk did not take. */
  readonly #waiting: LedgerLine[] = [];

  constructor(context: LedgerContext) {
    this.#context = context;
  }

  /**
   * Records that a turn or a request begins. It then counts even if this process dies.
   *
   * @param id random, if the turn or the request has none
   */
  begin(kind: LedgerLine["kind"], consumer: Consumer, id: string = randomUUID()): LedgerEntry {
    const { user, sessionId, model, tokenId } = consumer;
    const at = new Date().toISOString();
    const { host } = this.#context;
    const begun = {
      id,
      at,
      kind,
      user,
      sessionId,
      model,
      host,
      tokenId,
      ...UNREPORTED,
      ms: null,
      outcome: "begun",
    } as const;
    this.#write(begun);
    return new LedgerEntry(begun, (line) => this.#write(line));
  }

  /** Appends a line. If the disk is full, keeps it for the next call, because nothing that is counted may stop a turn. */
  #write(line: LedgerLine): void {
    this.#waiting.push(line);
    try {
      this.#waiting.splice(0, this.#context.usage.append(this.#waiting));
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      this.#context.warn(`What turns consume cannot be recorded: ${why}`);
      if (this.#waiting.length > MOST_WAITING) this.#waiting.shift();
    }
  }
}

/** A turn or a request that has begun. */
export class LedgerEntry {
  readonly #begun: LedgerLine;
  readonly #write: (line: LedgerLine) => void;
  readonly #since = performance.now();
  #isOver = false;

  constructor(begun: LedgerLine, write: (line: LedgerLine) => void) {
    this.#begun = begun;
    this.#write = write;
  }

  get id(): string {
    return this.#begun.id;
  }

  /** Records the end. Does nothing after the first call. */
  end(outcome: Exclude<LedgerLine["outcome"], "begun">, numbers: UsageNumbers = UNREPORTED): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#write({ ...this.#begun, ...numbers, ms: Math.round(performance.now() - this.#since), outcome });
  }
}
