import type { UserLimit } from "../../config/limits.js";

export type Period = "day" | "month";

/** The limits on model tokens per day and per month. */
export const BUDGETS = [
  { limit: "tokensPerDay", period: "day" },
  { limit: "tokensPerMonth", period: "month" },
] as const satisfies readonly { limit: UserLimit; period: Period }[];

/** The fleet warns once this share of a budget is used. */
export const SOFT_SHARE = 0.8;

/** The UTC day or month that contains `now`: its beginning and its end, in milliseconds since the epoch. */
export function periodOf(period: Period, now: number): { from: number; to: number } {
  const date = new Date(now);
  const [year, month, day] = [date.getUTCFullYear(), date.getUTCMonth(), date.getUTCDate()];
  if (period === "day") return { from: Date.UTC(year, month, day), to: Date.UTC(year, month, day + 1) };
  return { from: Date.UTC(year, month), to: Date.UTC(year, month + 1) };
}
