import type { TurnOutcome } from "../session.js";

/** A line of the ledger. A number is null if neither reported nor estimated. */
export interface LedgerLine {
  /** The id of the turn or the model request. Its two lines, `begun` and the line about its end, have the same id. */
  id: string;
  /** When the turn or the request began (ISO 8601, UTC), in both lines. */
  at: string;
  kind: "turn" | "request";
  user: string;
  sessionId: string;
  model: string | null;
  /** The host that counted it; null in a fleet without named hosts. */
  host: string | null;
  /** The credential that the client showed; null for commands and programs on the fleet's own machine. */
  tokenId: string | null;
  /** All input tokens, including those that the service read from its cache. */
  inputTokens: number | null;
  outputTokens: number | null;
  cacheReadTokens: number | null;
  credits: number | null;
  /** How long it took, in milliseconds. */
  ms: number | null;
  outcome: "begun" | TurnOutcome;
}

/**
 * The longest name of a model in the ledger, in characters. Agents can send any name, and each line of the ledger
 * contains it.
 */
const LONGEST_MODEL = 200;

/** Shortens the name of a model for the ledger. */
export function ledgerModel(name: string): string {
  return name.slice(0, LONGEST_MODEL);
}

/** The user, session, model and credential to which usage is attributed. */
export type Consumer = Pick<LedgerLine, "user" | "sessionId" | "model" | "tokenId">;

export type UsageNumbers = Pick<LedgerLine, "inputTokens" | "outputTokens" | "cacheReadTokens" | "credits">;

/** The numbers when nobody has reported any. */
export const UNREPORTED: UsageNumbers = {
  inputTokens: null,
  outputTokens: null,
  cacheReadTokens: null,
  credits: null,
};

/** A turn or a request that has begun. */
export interface BegunUse {
  /** Records the end. Does nothing after the first call. */
  end(outcome: Exclude<LedgerLine["outcome"], "begun">, numbers?: UsageNumbers): void;
}

/** Records turns and model requests. */
export interface UsageRecorder {
  /**
   * Records that a turn or a request begins. The turn or the request then counts even if this process dies.
   *
   * @param id the id of the turn or the request. Default: a random one.
   */
  begin(kind: LedgerLine["kind"], consumer: Consumer, id?: string): BegunUse;
}

export const USAGE_BY = ["user", "session", "model", "token", "day"] as const;
export type UsageBy = (typeof USAGE_BY)[number];

export interface UsageCounts extends UsageNumbers {
  turns: number;
  requests: number;
}

/** The sum of the lines that have the same user, model and key. */
export interface UsagePart extends UsageCounts {
  /** The user, session, model, token or day. */
  key: string | null;
  user: string;
  model: string | null;
}

export interface UsageQuery {
  /** In milliseconds since the epoch. Lines from `from` until before `to` count. */
  from: number;
  to: number;
  by: UsageBy;
  /** Only the lines of this user. */
  user?: string | undefined;
}

const HOUR_MS = 3_600_000;

/** The number of the hour since the epoch, in UTC. */
export function hourOf(at: string | number): number {
  return Math.floor(new Date(at).getTime() / HOUR_MS);
}

export function hourStart(hour: number): number {
  return hour * HOUR_MS;
}

/** The day of a time, such as `2026-11-29`, in UTC. */
export function dayOf(at: string | number): string {
  return new Date(at).toISOString().slice(0, 10);
}

export const NO_USAGE: UsageCounts = {
  turns: 0,
  requests: 0,
  ...UNREPORTED,
};

/** The counts that a line adds to the sums. Only the line `begun` counts the turn or the request, so that it counts once. */
export function countsOf(line: LedgerLine): UsageCounts {
  const { kind, outcome, inputTokens, outputTokens, cacheReadTokens, credits } = line;
  const one = outcome === "begun" ? 1 : 0;
  const [turns, requests] = kind === "turn" ? [one, 0] : [0, one];
  return { turns, requests, inputTokens, outputTokens, cacheReadTokens, credits };
}

export function addUsage(to: UsageCounts, from: UsageCounts): void {
  to.turns += from.turns;
  to.requests += from.requests;
  to.inputTokens = sum(to.inputTokens, from.inputTokens);
  to.outputTokens = sum(to.outputTokens, from.outputTokens);
  to.cacheReadTokens = sum(to.cacheReadTokens, from.cacheReadTokens);
  to.credits = sum(to.credits, from.credits);
}

function sum(a: number | null, b: number | null): number | null {
  return a === null ? b : b === null ? a : a + b;
}

/** The value by which a line is grouped. */
export function keyOf(line: Pick<LedgerLine, "user" | "sessionId" | "model" | "tokenId" | "at">, by: UsageBy) {
  if (by === "user") return line.user;
  if (by === "session") return line.sessionId;
  if (by === "token") return line.tokenId;
  return by === "model" ? line.model : line.at.slice(0, 10);
}

export const USAGE_COUNTS = [
  "turns",
  "requests",
  "inputTokens",
  "outputTokens",
  "cacheReadTokens",
  "credits",
] as const satisfies (keyof UsageCounts)[];

/** Adds two numbers. NaN stands for a number that nobody reported. */
export function plus(a = Number.NaN, b = Number.NaN): number {
  if (Number.isNaN(a)) return b;
  return Number.isNaN(b) ? a : a + b;
}

/** Adds up the counts of lines, and of sums of lines, by user, model and key. */
export class UsageParts {
  readonly #places = new Map<string, number>();
  readonly #parts: Pick<UsagePart, "key" | "user" | "model">[] = [];
  readonly #user: string | undefined;
  readonly #byCells = new WeakMap<readonly string[], Map<string, (number | null | undefined)[]>>();
  /**
   * The counts of all parts, one part after another, each in the order of {@link USAGE_COUNTS}. If each part were an
   * object, a large sum would spend most of its time on these objects.
   */
  readonly counts: number[] = [];

  constructor(user?: string) {
    this.#user = user;
  }

  /**
   * A cache of the results of {@link placeOf} on one day, with one entry for each of `cells`. All sums with the same
   * `cells` share this array. They fill in the entries, which are undefined at first.
   */
  placesOf(cells: readonly string[], day: string): (number | null | undefined)[] {
    const byDay = this.#byCells.get(cells) ?? new Map<string, (number | null | undefined)[]>();
    this.#byCells.set(cells, byDay);
    const places = byDay.get(day) ?? new Array<number | null | undefined>(cells.length);
    byDay.set(day, places);
    return places;
  }

  /** The index in {@link counts} at which the counts of a part begin. Null if the query is not about this user. */
  placeOf(key: string | null, user: string, model: string | null): number | null {
    if (this.#user !== undefined && user !== this.#user) return null;
    const name = `${key ?? "\u0001"}\0${user}\0${model ?? "\u0001"}`;
    let place = this.#places.get(name);
    if (place === undefined) {
      place = this.counts.length;
      this.#places.set(name, place);
      this.#parts.push({ key, user, model });
      for (const _ of USAGE_COUNTS) this.counts.push(Number.NaN);
    }
    return place;
  }

  add(key: string | null, user: string, model: string | null, counts: UsageCounts): void {
    const place = this.placeOf(key, user, model);
    if (place === null) return;
    for (const [index, name] of USAGE_COUNTS.entries())
      this.counts[place + index] = plus(this.counts[place + index], counts[name] ?? Number.NaN);
  }

  get all(): UsagePart[] {
    return this.#parts.map(({ key, user, model }, index) => {
      const place = index * USAGE_COUNTS.length;
      const count = (offset: number) => {
        const value = this.counts[place + offset] ?? Number.NaN;
        return Number.isNaN(value) ? null : value;
      };
      return {
        turns: count(0) ?? 0,
        requests: count(1) ?? 0,
        inputTokens: count(2),
        outputTokens: count(3),
        cacheReadTokens: count(4),
        credits: count(5),
        key,
        user,
        model,
      };
    });
  }
}
