import { Flags } from "@oclif/core";
import type { LimitValue } from "../../accounts/limits.js";
import { quote } from "../../base/errors.js";
import type { UserLimit } from "../../base/user-limits.js";
import { wholeNumberFault } from "../../base/values/text.js";
import { usage } from "./flags.js";

const MOST = Number.MAX_SAFE_INTEGER;

/** A flag for a limit: a whole number, `unlimited` or `default`. */
function limitFlag(name: string, description: string, example: number) {
  return Flags.custom<LimitValue>({
    description,
    helpValue: "N",
    parse: async (value) => {
      if (value === "unlimited" || value === "default") return value;
      const number = /^\d{1,16}$/.test(value) ? Number(value) : Number.NaN;
      if (number >= 1 && number <= MOST) return number;
      const fault = wholeNumberFault(value, [1, MOST]) ?? "which is too long";
      throw usage(`--${name} is ${quote(value)}, ${fault}. Allowed: a whole number from 1, unlimited, or default`, [
        `For example, write --${name} ${example}.`,
      ]);
    },
  })();
}

export const limitFlags = {
  "turns-per-minute": limitFlag("turns-per-minute", "turns that begin within a minute", 20),
  "concurrent-turns": limitFlag("concurrent-turns", "turns that run at once", 4),
  sessions: limitFlag("sessions", "sessions in all states", 100),
  connections: limitFlag("connections", "open connections to front doors", 16),
  "tokens-per-day": limitFlag("tokens-per-day", "model tokens in a day of UTC", 100_000),
  "tokens-per-month": limitFlag("tokens-per-month", "model tokens in a month of UTC", 1_000_000),
};

/** The limits that the flags give, by their names in the configuration. */
export function limitsIn(
  flags: Readonly<Partial<Record<keyof typeof limitFlags, LimitValue | undefined>>>,
): Partial<Record<UserLimit, LimitValue>> {
  const limits: Partial<Record<UserLimit, LimitValue>> = {};
  for (const name of Object.keys(limitFlags) as (keyof typeof limitFlags)[]) {
    const value = flags[name];
    if (value === undefined) continue;
    limits[name.replace(/-([a-z])/g, (_, letter: string) => letter.toUpperCase()) as UserLimit] = value;
  }
  return limits;
}
