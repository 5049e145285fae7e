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
  type UsageBy,
  type UsageCounts,
  type UsageNumbers,
  type UsagePart,
  type UsageRecorder,
} from "../base/usage.js";
import { compareText } from "../base/values/text.js";
import type { Prices } from "../config/schema.js";
import type { UsageTable } from "../store/usage.js";

/** How many ledger lines to keep in memory at most while the disk is full. */
const MOST_WAITING = 100_000;
const AT_ONCE = 100;
/**
 * How long a line may wait so that one transaction appends it together with others, in milliseconds. If the process is
 * killed, these lines are lost.
 */
const SOON_MS = 20;

interface LedgerContext {
  usage: UsageTable;
  /** The name of this host; null in a fleet without named hosts. */
  host: string | null;
  warn: (message: string) => void;
}

/** Records the turns and the model requests of this process, each once. */
export class Ledger implements UsageRecorder {
  readonly #context: LedgerContext;
  /** The usage that this process has counted since it opened the ledger. */
  readonly counted: UsageCounts = { ...NO_USAGE };
  /** Lines that wait for others, or that could not be written to the disk. */
  readonly #waiting: LedgerLine[] = [];
  #soon: NodeJS.Timeout | undefined;

  constructor(context: LedgerContext) {
    this.#context = context;
    context.usage.appendWaiting = () => this.#write();
  }

  /**
   * Records the beginning of a turn or of a model request. A request that is about to leave this process must never be
   * missing in the ledger, so its line is on the disk when the call returns. The end of a turn is appended at once,
   * too.
   */
  begin(kind: LedgerLine["kind"], consumer: Consumer, id: string = randomUUID()): LedgerEntry {
    const begun = this.#begun(kind, consumer, id);
    this.#add(begun);
    if (kind === "request") this.#write();
    return new LedgerEntry(begun, (line) => {
      this.#add(line);
      if (kind === "turn") this.#write();
    });
  }

  /** Records a model request that has completed. */
  completed(consumer: Consumer, numbers: UsageNumbers): void {
    const begun = this.#begun("request", consumer, randomUUID());
    new LedgerEntry(begun, (line) => this.#add(begun, line)).end("completed", numbers);
  }

  #begun(kind: LedgerLine["kind"], { user, sessionId, model, tokenId }: Consumer, id: string): LedgerLine {
    const at = new Date().toISOString();
    const { host } = this.#context;
    const known = model === null ? null : ledgerModel(model);
    return { id, at, kind, user, sessionId, model: known, host, tokenId, ...UNREPORTED, ms: null, outcome: "begun" };
  }

  #add(...lines: LedgerLine[]): void {
    for (const line of lines) addUsage(this.counted, countsOf(line));
    this.#waiting.push(...lines);
    this.#soon ??= setTimeout(() => this.#write(), SOON_MS);
  }

  /**
   * Appends all lines that wait. If the disk is full, only warns, because a failed count must not stop a turn. Keeps
   * the lines for the next call.
   */
  #write(): void {
    clearTimeout(this.#soon);
    this.#soon = undefined;
    try {
      // Write in small batches. On a full disk, the first batch fails and ends the loop, so a call costs little.
      while (this.#waiting.length > 0) {
        const taken = this.#context.usage.append(this.#waiting.slice(0, AT_ONCE));
        this.#waiting.splice(0, taken);
      }
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      this.#context.warn(`What turns consume cannot be recorded: ${why}`);
      this.#waiting.splice(0, this.#waiting.length - MOST_WAITING);
    }
  }
}

class LedgerEntry implements BegunUse {
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

/** Usage of turns. A number is null if neither reported nor estimated. */
export interface UsageTotal extends UsageCounts {
  /**
   * The cost by `provider.prices`, in their currency. Null if a model has no price, if a model has requests but none of
   * them reported its tokens, or if there were no requests. A request adds to the cost only if its tokens
   * were reported.
   */
  cost: number | null;
}

export interface UsageRow extends UsageTotal {
  /** The user, the session, the model, the id of the token, or the day. Null if there is none. */
  key: string | null;
}

export interface UsageReport {
  /** ISO 8601. */
  from: string;
  to: string;
  by: UsageBy;
  usage: UsageRow[];
  total: UsageTotal;
}

/** Adds up the parts of each key. Sorts days by date, and all other keys by their tokens, the largest number first. */
export function reportOf(parts: readonly UsagePart[], by: UsageBy, prices: Prices | null) {
  const rows = new Map<string | null, UsageRow>();
  const total = new Sum(prices);
  const sums = new Map<string | null, Sum>();
  for (const part of parts) {
    const sum = sums.get(part.key) ?? new Sum(prices);
    sums.set(part.key, sum);
    sum.add(part);
    total.add(part);
  }
  for (const [key, sum] of sums) rows.set(key, { key, ...sum.total });
  const byKey = (a: UsageRow, b: UsageRow) => compareText(a.key ?? "", b.key ?? "");
  const bySize = (a: UsageRow, b: UsageRow) => tokensOf(b) - tokensOf(a) || byKey(a, b);
  return { usage: [...rows.values()].sort(by === "day" ? byKey : bySize), total: total.total };
}

function tokensOf({ inputTokens, outputTokens }: UsageCounts): number {
  return (inputTokens ?? 0) + (outputTokens ?? 0);
}

class Sum {
  readonly #counts: UsageCounts = { ...NO_USAGE };
  readonly #prices: Prices | null;
  #cost: number | null = null;
  #isKnown = true;

  constructor(prices: Prices | null) {
    this.#prices = prices;
  }

  add(part: UsagePart): void {
    addUsage(this.#counts, part);
    if (part.requests === 0 && part.inputTokens === null) return;
    const cost = costOf(part, this.#prices);
    if (cost === null) this.#isKnown = false;
    else this.#cost = (this.#cost ?? 0) + cost;
  }

  get total(): UsageTotal {
    const { turns, requests, inputTokens, outputTokens, cacheReadTokens, credits } = this.#counts;
    const cost = this.#isKnown && this.#cost !== null ? Number(this.#cost.toFixed(6)) : null;
    return { turns, requests, inputTokens, outputTokens, cacheReadTokens, credits, cost };
  }
}

const MILLION = 1_000_000;

function costOf({ model, inputTokens, outputTokens, cacheReadTokens }: UsagePart, prices: Prices | null) {
  const price = model === null || prices === null || !Object.hasOwn(prices, model) ? undefined : prices[model];
  if (price === undefined || inputTokens === null || outputTokens === null) return null;
  const cached = Math.min(cacheReadTokens ?? 0, inputTokens);
  return ((inputTokens - cached) * price.input + cached * price.cached + outputTokens * price.output) / MILLION;
}
