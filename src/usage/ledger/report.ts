import type { Prices } from "../../config/sections/usage.js";
import { compareText } from "../../config/values/text.js";
import { addUsage, NO_USAGE, type UsageBy, type UsageCounts, type UsagePart } from "../../model/usage/usage.js";

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
