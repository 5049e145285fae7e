import * as v from "valibot";
import { FleetError, type Suggestion } from "../errors.js";
import { count, size } from "./rules.js";

const limitsOf = (defaults: {
  connections: number;
  sessions: number | null;
  requestsInFlight: number;
  bytes: string;
}) =>
  v.strictObject({
    // Open connections to the front door.
    connections: v.optional(v.nullable(count()), defaults.connections),
    // Sessions in any state.
    sessions: v.optional(v.nullable(count({ example: defaults.sessions ?? 100_000 })), defaults.sessions),
    // Unanswered requests at the front door.
    requestsInFlight: v.optional(v.nullable(count()), defaults.requestsInFlight),
    // Bytes in the buffers of the front door: unfinished frames, unanswered requests, unread data.
    unreadBytes: v.optional(v.nullable(size()), defaults.bytes),
  });

/** A number of processors. The kernel holds no limit below a hundredth of one. */
export const processors = () => {
  const allowed = "a number of processors from 0.01 to 1024, such as 0.5";
  return v.pipe(v.number(allowed), v.minValue(0.01, allowed), v.maxValue(1024, allowed));
};

/** A limit of null means unlimited. */
export const limits = v.strictObject({
  // For each user.
  default: v.optional(limitsOf({ connections: 16, sessions: 1000, requestsInFlight: 2000, bytes: "64mb" }), {}),
  // For all users together.
  total: v.optional(limitsOf({ connections: 1024, sessions: null, requestsInFlight: 20_000, bytes: "512mb" }), {}),
});

/** The limited things: the keys below `limits.default` (for each user) and `limits.total` (for all users together). */
export const LIMITED = ["connections", "sessions", "requestsInFlight", "unreadBytes"] as const;
export type Limited = (typeof LIMITED)[number];

export type LimitName = Limited | `total.${Limited}`;

/** The highest allowed number of each thing; null means unlimited. */
export type Limits = Readonly<Record<Limited, number | null>>;

const WORDS: Record<Limited, string> = {
  connections: "connections to the front door",
  sessions: "sessions",
  requestsInFlight: "requests that wait for an answer",
  unreadBytes: "bytes in the buffers of the front door",
};
const REMEDIES: Record<Limited, readonly Suggestion[]> = {
  connections: ["Close a connection that is not needed."],
  sessions: ["copilotfleet list --user USER", "copilotfleet delete SESSION"],
  requestsInFlight: ["Wait for the answers to earlier requests."],
  unreadBytes: ["Send less at the same time, and read the answers."],
};

export function limitReached(limit: LimitName, max: number): FleetError {
  const isTotal = limit.startsWith("total.");
  const what = (isTotal ? limit.slice("total.".length) : limit) as Limited;
  const key = isTotal ? `limits.${limit}` : `limits.default.${limit}`;
  const whose = isTotal ? "All users together" : "A user";
  const remedies: readonly Suggestion[] = isTotal ? ["Try again in a moment."] : REMEDIES[what];
  return new FleetError(
    "FLEET_LIMIT_REACHED",
    `${whose} may have ${max} ${WORDS[what]} (${key}), and the limit is reached.`,
    { suggestions: [...remedies, `Raise ${key}.`], limit },
  );
}
