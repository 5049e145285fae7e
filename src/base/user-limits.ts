import { FleetError, type Suggestion } from "./errors.js";
import { writeDuration } from "./values/measures.js";
import { countOf } from "./values/text.js";

/** The limits that `limit set` can set for one user. */
export const USER_LIMITS = [
  "turnsPerMinute",
  "concurrentTurns",
  "sessions",
  "connections",
  "tokensPerDay",
  "tokensPerMonth",
] as const;
export type UserLimit = (typeof USER_LIMITS)[number];

/** The limits of one user, by their names; null: unlimited. */
export type UserLimits = Readonly<Record<UserLimit, number | null>>;

/**
 * The names of the limits that exist both for each user (`limits.default`) and for all users together (`limits.total`).
 */
export const LIMITED = ["connections", "sessions", "requestsInFlight", "unreadBytes"] as const;
export type Limited = (typeof LIMITED)[number];

export type LimitName = Limited | UserLimit | `total.${Limited}`;

/** The highest allowed numbers, by the names of the limits; null: unlimited. */
export type Limits = Readonly<Record<Limited, number | null>>;

/** The limits that cannot be set, for each user and for all users together. */
export const FIXED_LIMITS = {
  default: { requestsInFlight: 2000, unreadBytes: 64 * 1024 * 1024 },
  total: { requestsInFlight: 20_000, unreadBytes: 512 * 1024 * 1024 },
} as const;

const SHOW: Suggestion = "copilotfleet limit show --user USER";

/** The words for each limited thing in a message: the noun, the text after the noun, and the next steps. */
const WORDS: Record<Limited | UserLimit, readonly [noun: string, rest: string, ...remedies: Suggestion[]]> = {
  connections: ["connection", " to the front door", "Close a connection that is not needed."],
  sessions: ["session", "", "copilotfleet list --user USER", "copilotfleet delete SESSION"],
  requestsInFlight: ["unanswered request", "", "Wait for the answers to earlier requests."],
  unreadBytes: ["byte", " in the buffers of the front door", "Send less at the same time, and read the answers."],
  turnsPerMinute: ["turn", " per minute", SHOW],
  concurrentTurns: ["turn", " at once", "Wait until another turn of the user has ended.", SHOW],
  tokensPerDay: ["model token", " per day", SHOW],
  tokensPerMonth: ["model token", " per month", SHOW],
};

/** Where a limit of a user comes from: the configuration, a group that the configuration names, or `limit set`. */
export type LimitSource = "default" | `group:${string}` | "user";

/** Further facts about a limit that was reached. */
export interface Reached {
  /** Where the limit comes from. Default: `limits.default`. */
  source?: LimitSource;
  /** How much of the limit is used. If undefined, the message states only that the limit is reached. */
  used?: number;
  /** When the same call may succeed, in milliseconds from now. */
  retryAfterMs?: number;
}

export function limitReached(
  limit: LimitName,
  max: number,
  { source = "default", used, retryAfterMs }: Reached = {},
): FleetError {
  const isTotal = limit.startsWith("total.");
  const what = (isTotal ? limit.slice("total.".length) : limit) as Limited | UserLimit;
  const whose = isTotal ? "All users together" : source === "user" ? "This user" : "A user";
  const place = what in FIXED_LIMITS.default ? null : placeOf(isTotal ? limit : what, isTotal ? "total" : source);
  const where = place === null ? "" : ` (${place.where})`;
  const state = used === undefined ? "the limit is reached" : `${used} ${used === 1 ? "is" : "are"} used`;
  const [noun, rest, ...remedies] = WORDS[what];
  const wait = writeDuration(Math.ceil((retryAfterMs ?? 0) / 1_000) * 1_000);
  return new FleetError(
    "FLEET_LIMIT_REACHED",
    `${whose} may have ${countOf(max, noun)}${rest}${where}, and ${state}.`,
    {
      suggestions: [
        ...(retryAfterMs === undefined ? [] : [`Try again in ${wait}.` as const]),
        ...(isTotal ? (["Try again in a moment."] as const) : remedies),
        ...(place === null ? [] : [place.raise]),
      ],
      limit,
      retryAfterMs,
    },
  );
}

/**
 * The error for a session that gets no more AI credits, because of the fleet's credit limit or a lower limit of its
 * client.
 *
 * @param used null if only the runtime knows it
 * @param max the fleet's credit limit; null if there is none
 */
export function creditsUsedUp(
  sessionId: string,
  { used, max, cause }: { used: number | null; max: number | null; cause?: unknown },
): FleetError {
  const ofClient = "the sessionLimits of its client";
  const ofFleet = max !== null && (used === null || used >= max) ? `session.maxCredits is ${max}` : null;
  const by = ofFleet === null ? ofClient : used === null ? `${ofFleet}, or ${ofClient}` : ofFleet;
  return new FleetError(
    "FLEET_LIMIT_REACHED",
    `Session ${sessionId} has used ${used ?? "up its"} AI credits, and gets no more (${by}).`,
    {
      cause,
      suggestions: [
        "copilotfleet create --user USER # a new session has credits of its own",
        "Raise session.maxCredits.",
      ],
      limit: "session.maxCredits",
      retryable: false,
    },
  );
}

/** Where a limit is set, and how to raise it. */
function placeOf(limit: string, source: LimitSource | "total"): { where: string; raise: Suggestion } {
  if (source === "user") {
    const flag = limit.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
    return { where: "set by limit set", raise: `copilotfleet limit set --user USER --${flag} N` };
  }
  const group = /^group:(.*)$/s.exec(source)?.[1];
  const section = source === "total" ? "limits" : group === undefined ? "limits.default" : `limits.groups.${group}`;
  return { where: `${section}.${limit}`, raise: `Raise ${section}.${limit}.` };
}
