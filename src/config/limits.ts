import { FleetError } from "../errors.js";

/** The limits for each user and for all users together. The names are those of the keys below `limits.default`. */
export const LIMITED = ["connections", "sessions", "requestsInFlight", "unreadBytes"] as const;
export type Limited = (typeof LIMITED)[number];

/** Names a limit in errors and metrics. */
export type LimitName = Limited | `total.${Limited}`;

/** The highest value of each; null means unlimited. */
export type Limits = Readonly<Record<Limited, number | null>>;

const WORDS: Record<Limited, string> = {
  connections: "connections to the front door",
  sessions: "sessions",
  requestsInFlight: "requests that wait for an answer",
  unreadBytes: "bytes in the buffers of the front door",
};
const REMEDIES: Record<Limited, readonly string[]> = {
  connections: ["Close a connection that is not needed."],
  sessions: ["copilotfleet list --user USER", "copilotfleet delete SESSION"],
  requestsInFlight: ["Wait for the answers to earlier requests."],
  unreadBytes: ["Send less at the same time, and read the answers."],
};

/**
 * Creates the error for exceeding a limit.
 *
 * @param max the value of the limit
 */
export function limitReached(limit: LimitName, max: number): FleetError {
  const isTotal = limit.startsWith("total.");
  const what = (isTotal ? limit.slice("total.".length) : limit) as Limited;
  const key = isTotal ? `limits.${limit}` : `limits.default.${limit}`;
  const whose = isTotal ? "All users together" : "A user";
  return new FleetError(
    "FLEET_LIMIT_REACHED",
    `${whose} may have ${max} ${WORDS[what]} (${key}), and the limit is reached.`,
    {
      suggestions: [...(isTotal ? ["Try again in a moment."] : REMEDIES[what]), `Raise ${key}.`],
      limit,
    },
  );
}
