import type { LimitName, LimitNumbers } from "../api/types.js";

export const USAGE_BY = ["user", "session", "model", "token", "day"] as const;
export type UsageBy = (typeof USAGE_BY)[number];

/** A number is null if neither reported nor estimated. */
export interface Counts {
  turns: number;
  requests: number;
  inputTokens: number | null;
  outputTokens: number | null;
  cacheReadTokens: number | null;
  credits: number | null;
  cost: number | null;
}

export interface Row extends Counts {
  key: string | null;
}

export interface Report {
  from: string;
  to: string;
  by: UsageBy;
  usage: readonly Row[];
  total: Counts;
}

/** The limits of a user. */
export interface Limits {
  limits: LimitNumbers;
  used: LimitNumbers;
  /** Where each limit comes from: `default`, `group:` and the name of the group, or `user`. Only operators see this. */
  sources?: Readonly<Record<LimitName, string>>;
}

export interface UserLimits extends Limits {
  user: string;
  sources: NonNullable<Limits["sources"]>;
}

export const LIMITS: readonly (readonly [LimitName, title: string])[] = [
  ["turnsPerMinute", "Turns per minute"],
  ["concurrentTurns", "Turns at once"],
  ["sessions", "Sessions"],
  ["connections", "Connections"],
  ["tokensPerDay", "Tokens per day"],
  ["tokensPerMonth", "Tokens per month"],
];

export function limitsPath(user: string): string {
  return `/v1/users/${encodeURIComponent(user)}/limits`;
}
