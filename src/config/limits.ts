import * as v from "valibot";
import { USER_LIMITS } from "../base/user-limits.js";
import { count, tokens } from "./rules.js";

const limitsOf = (defaults: { connections: number; sessions: number | null }) =>
  ({
    // Open connections to the front door.
    connections: v.optional(v.nullable(count()), defaults.connections),
    // Sessions in any state.
    sessions: v.optional(v.nullable(count({ example: defaults.sessions ?? 100_000 })), defaults.sessions),
  }) as const;

/** The limits that can be set for one group or one user, each with its rule. */
const userLimits = {
  turnsPerMinute: count,
  concurrentTurns: count,
  sessions: () => count({ example: 1000 }),
  connections: count,
  tokensPerDay: tokens,
  tokensPerMonth: tokens,
} as const;

const ALLOWED_GROUPS =
  'an object with the names of groups, each with limits of its own, such as {"interns": {"tokensPerDay": 100000}}';

const ofGroup = v.strictObject(
  {
    turnsPerMinute: v.optional(v.nullable(userLimits.turnsPerMinute())),
    concurrentTurns: v.optional(v.nullable(userLimits.concurrentTurns())),
    sessions: v.optional(v.nullable(userLimits.sessions())),
    connections: v.optional(v.nullable(userLimits.connections())),
    tokensPerDay: v.optional(v.nullable(userLimits.tokensPerDay())),
    tokensPerMonth: v.optional(v.nullable(userLimits.tokensPerMonth())),
  },
  ({ expected }) => (expected === "never" ? `the keys ${USER_LIMITS.join(", ")}` : ALLOWED_GROUPS),
);

/** A number of processors. The kernel cannot enforce a limit below 0.01. */
export const processors = () => {
  const allowed = "a number of processors from 0.01 to 1024, such as 0.5";
  return v.pipe(v.number(allowed), v.minValue(0.01, allowed), v.maxValue(1024, allowed));
};

/** A limit of null means unlimited. */
export const limits = v.strictObject({
  // For each user.
  default: v.optional(
    v.strictObject({
      ...limitsOf({ connections: 16, sessions: 1000 }),
      // Turns that begin within a minute, and turns that run at once.
      turnsPerMinute: v.optional(v.nullable(userLimits.turnsPerMinute()), null),
      concurrentTurns: v.optional(v.nullable(userLimits.concurrentTurns()), null),
      // Model tokens in a day and in a month of UTC.
      tokensPerDay: v.optional(v.nullable(userLimits.tokensPerDay()), null),
      tokensPerMonth: v.optional(v.nullable(userLimits.tokensPerMonth()), null),
    }),
    {},
  ),
  // For the members of groups. These limits replace those of `default`.
  groups: v.optional(
    v.pipe(
      v.record(v.string(), ofGroup, ALLOWED_GROUPS),
      v.metadata({ allowed: ALLOWED_GROUPS, json: true, kind: "object" }),
    ),
    {},
  ),
  // For all users together.
  total: v.optional(v.strictObject(limitsOf({ connections: 1024, sessions: null })), {}),
});
