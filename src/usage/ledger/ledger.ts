import { randomUUID } from "node:crypto";
import {
  addUsage,
  type BegunUse,
  type Consumer,
  countsOf,
  type LedgerLine,
  ledgerModel,
  NO_USAGE,
  UNREPORTED,
  type UsageCounts,
  type UsageNumbers,
  type UsageRecorder,
} from "../../model/usage/usage.js";
import type { UsageStore } from "../../store/usage/port.js";

/** How many ledger lines to keep in memory at most while the disk is full. */
const MOST_WAITING = 100_000;
const AT_ONCE = 100;

interface LedgerContext {
  usage: UsageStore;
  /** The name of this host; null in a fleet without named hosts. */
  host: string | null;
  warn: (message: string) => void;
}

/** Records the turns and the model requests of this process, each once. */
export class Ledger implements UsageRecorder {
  readonly #context: LedgerContext;
  /** The usage that this process has counted since it opened the ledger. */
  readonly counted: UsageCounts = { ...NO_USAGE };
  /** Lines that could not be written to the disk. */
  readonly #waiting: LedgerLine[] = [];

  constructor(context: LedgerContext) {
    this.#context = context;
  }

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
      model: model === null ? null : ledgerModel(model),
      host,
      tokenId,
      ...UNREPORTED,
      ms: null,
      outcome: "begun",
    } as const;
    this.#write(begun);
    return new LedgerEntry(begun, (line) => this.#write(line));
  }

  /**
   * Appends a line. If the disk is full, only warns, because a failed count must not stop a turn. Keeps the line for
   * the next call.
   */
  #write(line: LedgerLine): void {
    addUsage(this.counted, countsOf(line));
    this.#waiting.push(line);
    try {
      // Write in small batches. On a full disk, the first batch fails and ends the loop, so a call costs little.
      while (this.#waiting.length > 0) {
        const taken = this.#context.usage.append(this.#waiting.slice(0, AT_ONCE));
        this.#waiting.splice(0, taken);
      }
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      this.#context.warn(`What turns consume cannot be recorded: ${why}`);
      if (this.#waiting.length > MOST_WAITING) this.#waiting.shift();
    }
  }
}

export class LedgerEntry implements BegunUse {
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

  end(outcome: Exclude<LedgerLine["outcome"], "begun">, numbers: UsageNumbers = UNREPORTED): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#write({ ...this.#begun, ...numbers, ms: Math.round(performance.now() - this.#since), outcome });
  }
}
