import { FleetError, quote } from "./errors.js";
import type { TurnOutcome } from "./session.js";
import { creditsUsedUp, type UserLimits } from "./user-limits.js";

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
  /** Records a model request that has completed. */
  completed(consumer: Consumer, numbers: UsageNumbers): void;
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

/** The day of a time, such as `2026-11-29`, in UTC. */
export function dayOf(at: string | number): string {
  return new Date(at).toISOString().slice(0, 10);
}

export const NO_USAGE: UsageCounts = {
  turns: 0,
  requests: 0,
  ...UNREPORTED,
};

/**
 * The counts that a line adds to the sums. Only the line `begun` counts the turn or the request, so that it counts
 * once.
 */
export function countsOf(line: LedgerLine): UsageCounts {
  const { kind, outcome, inputTokens, outputTokens, cacheReadTokens, credits } = line;
  const one = outcome === "begun" ? 1 : 0;
  const [turns, requests] = kind === "turn" ? [one, 0] : [0, one];
  return { turns, requests, inputTokens, outputTokens, cacheReadTokens, credits };
}

export function addUsage(to: UsageCounts, from: UsageCounts): void {
  to.turns += from.turns;
  to.requests += from.requests;
  for (const name of NUMBERS) to[name] = sum(to[name], from[name]);
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

const NUMBERS = ["inputTokens", "outputTokens", "cacheReadTokens", "credits"] as const satisfies (keyof UsageNumbers)[];
export const USAGE_COUNTS = ["turns", "requests", ...NUMBERS] as const;

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
      const [turns, requests, inputTokens = null, outputTokens = null, cacheReadTokens = null, credits = null] =
        USAGE_COUNTS.map((_, offset) => count(offset));
      const numbers = { inputTokens, outputTokens, cacheReadTokens, credits };
      return { turns: turns ?? 0, requests: requests ?? 0, ...numbers, key, user, model };
    });
  }
}

/** The runtime counts in billionths of an AI credit. */
const NANO = 1e9;

/** The AI credits in an amount that the runtime reports. Null if it is not an amount. */
export function creditsIn(nano: unknown): number | null {
  return typeof nano === "number" && Number.isFinite(nano) && nano >= 0 ? nano / NANO : null;
}

/** The limits of a session in the form of the runtime. */
interface SessionLimits {
  maxAiCredits?: number;
}

interface LimitsRpc {
  metadata: { snapshot: () => Promise<{ sessionLimits?: unknown }> };
  options: { update: (params: { sessionLimits: SessionLimits }) => Promise<unknown> };
}

export interface CreditConfig {
  provider: object | null;
  session: { maxCredits: number | null };
}

/**
 * How many AI credits each session may use. Null without a limit, and with a provider, because only GitHub's models use
 * credits.
 */
export function creditLimit({ provider, session: { maxCredits } }: CreditConfig): number | null {
  return provider === null ? maxCredits : null;
}

/**
 * The limits with which a session is opened, in the form of the runtime: the lower of the fleet's credit limit and the
 * limit that the owner asks for. The runtime forgets them when it unloads the session, so each opening by its owner
 * sets them again.
 *
 * @param member whether a member opens the session. Only the owner can ask for a limit. See {@link keepLimited}.
 */
export function sessionLimitsOf(
  config: CreditConfig,
  asked: unknown,
  member: boolean,
): { sessionLimits?: SessionLimits } {
  if (member) return {};
  const most = creditLimit(config);
  if (most === null) return asked === undefined ? {} : { sessionLimits: asked as SessionLimits };
  return { sessionLimits: isWithin(asked, most) ? asked : { maxAiCredits: most } };
}

/**
 * Sets the fleet's credit limit on a session that a member has opened, unless the session already has this limit or a
 * lower one.
 *
 * @param rpc the requests about the session, in the form of the SDK
 */
export async function keepLimited(config: CreditConfig, rpc: LimitsRpc): Promise<void> {
  const most = creditLimit(config);
  if (most === null) return;
  const { sessionLimits } = await rpc.metadata.snapshot();
  if (isWithin(sessionLimits, most)) return;
  await rpc.options.update({ sessionLimits: { maxAiCredits: most } }).catch((error: unknown) => {
    // The runtime refuses a limit below the credits that the session has used. `assertCredits` refuses its next prompt.
    if (creditsInRefusal(error) === null) throw error;
  });
}

/**
 * The AI credits that a session has used, from the error with which the runtime refuses a limit below them (as of
 * 1.0.85). Null for any other error.
 */
export function creditsInRefusal(error: unknown): number | null {
  const [, used] = (error instanceof Error && /has already used ([\d.]+) AI credits/.exec(error.message)) || [];
  return used === undefined ? null : Number(used);
}

/** Whether these limits of a session allow at most `most` credits. False if there is no limit. */
export function isWithin(limits: unknown, most: number): limits is { maxAiCredits: number } {
  const max = (limits as { maxAiCredits?: unknown } | null | undefined)?.maxAiCredits;
  return typeof max === "number" && max <= most;
}

/**
 * Refuses the turn if a session has used up its AI credits. Otherwise, the runtime would begin the turn and end it
 * without an answer. It reports the reason only in the first such turn (measured with 1.0.85).
 *
 * @param metrics asks the server for `session.usage.getMetrics`. Called only if there is a credit limit.
 * @throws FleetError `FLEET_LIMIT_REACHED`
 */
export async function assertCredits(
  config: CreditConfig,
  sessionId: string,
  metrics: () => Promise<unknown>,
): Promise<void> {
  const max = creditLimit(config);
  if (max === null) return;
  const used = creditsUsed(await metrics());
  if (used >= max) throw creditsUsedUp(sessionId, { used, max });
}

/** The AI credits that a session has used, from the server's answer to `session.usage.getMetrics`. */
export function creditsUsed(metrics: unknown): number {
  const { totalNanoAiu } = (metrics ?? {}) as { totalNanoAiu?: unknown };
  return creditsIn(totalNanoAiu) ?? 0;
}

/**
 * Whether the event reports that the runtime did not run a tool, because the session has used up its AI credits. The
 * turn then ends.
 */
export function saysCut(event: { type: string; data: object }): boolean {
  if (event.type !== "tool.execution_complete") return false;
  return (event.data as { error?: { code?: unknown } }).error?.code === "session_limits_exhausted";
}

/** The quota of a user's Copilot plan for one kind of request, and how much of it is used, as GitHub reports it. */
export interface QuotaPart {
  /** GitHub's name of the kind, such as `premium_interactions`. */
  kind: string;
  /** Requests that the user has made in the present period. */
  used: number;
  /** Requests that the plan includes in a period. Null: unlimited. */
  included: number | null;
  /** Requests beyond those that the plan includes. */
  overage: number;
  /** When the next period begins, in ISO 8601. Null if GitHub does not report it. */
  resetsAt: string | null;
}

/** Set while an operator refuses a user at every entry point. */
export interface Suspension {
  /** ISO 8601, UTC. */
  since: string;
  /** As an operator wrote it, for other operators. */
  reason: string | null;
}

/** The record about the limits of one user. */
export interface UserLimitRecord extends OwnLimits {
  user: string;
  /** The groups in `limits.groups` to which the user belonged at the user's last sign-on that named groups. */
  groups: readonly string[];
}

/** The part of the record that operators set. */
export interface OwnLimits {
  /**
   * The limits that apply to this user alone; null: unlimited. If a limit is absent, the limit of a group or of
   * everybody applies.
   */
  limits: Partial<UserLimits>;
  /** Kept here because every entry point reads the limits of its user anyway. Absent: the user is not suspended. */
  suspended?: Suspension;
}

/** Call this before anything begins for a user. @throws FleetError `FLEET_USER_SUSPENDED` */
export function refuseSuspended(record: UserLimitRecord | null): void {
  if (record?.suspended === undefined) return;
  const { user, suspended } = record;
  // Only a person with a shell on the host gets commands and their comments, and so the reason.
  const reason = suspended.reason === null ? "" : ` # the reason for the suspension: ${suspended.reason}`;
  throw new FleetError("FLEET_USER_SUSPENDED", `User ${quote(user)} has been suspended since ${suspended.since}.`, {
    suggestions: [`copilotfleet user resume ${user}${reason}`],
  });
}

/** The time to which `turnsPerMinute` refers, in milliseconds. */
export const MINUTE_MS = 60_000;

/**
 * The purpose of a slot. A slot counts towards a limit as long as its turn, its connection to a front door, or the
 * creation of its session lasts. A `turn` includes the turn's first prompt. `prompt`, a further prompt of a turn, only
 * counts for `turnsPerMinute`.
 */
export type SlotKind = "turn" | "prompt" | "session" | "connection";

export interface Slot {
  /** Null for a slot that counts for all users together. */
  user: string | null;
  kind: SlotKind;
  /** Random, and unique for the user. The id of a session's slot begins with the id of the session and `~`. */
  id: string;
}

/** A slot that somebody wants. A limit of null is not checked. */
export interface SlotRequest extends Slot {
  /** How many slots of this kind the user may have. Sessions count if they are recorded or have a slot. */
  most: number | null;
  /** How many turns and further prompts of the user may begin in a minute. */
  perMinute: number | null;
}

export type SlotAnswer =
  | { granted: true }
  | {
      granted: false;
      reached: "most" | "perMinute";
      /** How many slots the user has, or how many turns and prompts of the user began in the last minute. */
      used: number;
      /** When the same request may succeed, in milliseconds from now; null if it is not known. */
      retryAfterMs: number | null;
    };

/** How many turns and connections of a user count for these limits now. */
export interface SlotsUsed {
  turnsPerMinute: number;
  concurrentTurns: number;
  connections: number;
}
