import type { Config } from "../../config/schema.js";
import {
  ALLOWED_LEASE_TTL,
  allowedDuration,
  type Duration,
  invalidDuration,
  LONGEST_TIMER_MS,
  readDuration,
  readLeaseTtl,
} from "../../config/values/duration.js";
import { FleetError, option, quote } from "../../errors.js";
import { validateSessionId, validateUser } from "../../model/ids.js";
import type { AcquireOptions, LeaseWait } from "./leases.js";

/** Options for taking the lease on a session, from a program or a command. */
export interface LockOptions {
  /** The user who will hold the lease: the owner of the session, or a member. */
  user: string;
  /** How long the lease outlives a holder that died: 1s to 24d, such as `300s`, or in milliseconds. Default: `lock.ttl`. */
  ttl?: Duration;
  /**
   * How long to wait for other holders and waiters, such as `30s`, or in milliseconds. `0` tries once. Default: `30s`.
   */
  wait?: Duration;
  /** Take the lease at once, even if somebody else holds it. The reason must not be empty. Everybody can see it. */
  steal?: { reason: string };
  /**
   * Take the lease for another process, which gets its token. The lease is not renewed. It lasts for `ttl` unless somebody
   * releases it.
   */
  detached?: true;
  /** Called if the wait takes longer than a second, and again when the lease or the number of earlier waiters changes. */
  onWait?: (wait: LeaseWait) => void;
  signal?: AbortSignal;
}

const WAIT_MS = 30_000;
/** How long the reason for `steal` may be, in characters. Tables show it, and every revision of the lease contains it. */
const LONGEST_REASON = 500;

/** Checks the options and fills in the defaults. */
export function acquireOptions(sessionId: string, options: LockOptions, { lock }: Config): AcquireOptions {
  const { user, ttl, wait, steal, detached, onWait, signal } = options;
  return {
    sessionId: validateSessionId(sessionId),
    holder: validateUser(user),
    ttlMs: ttl === undefined ? lock.ttlMs : parseLeaseTtl(ttl, option("ttl")),
    waitMs: wait === undefined ? WAIT_MS : parseWait(wait, option("wait")),
    ...(steal === undefined ? {} : { steal: { reason: parseReason(steal.reason, option("reason")) } }),
    ...(detached === undefined ? {} : { detached }),
    ...(onWait === undefined ? {} : { onWait }),
    ...(signal === undefined ? {} : { signal }),
  };
}

/** The TTL in milliseconds. */
export function parseLeaseTtl(given: Duration, name: string): number {
  const ms = readLeaseTtl(asText(given));
  if (ms !== null) return ms;
  throw invalidDuration(given, name, ALLOWED_LEASE_TTL, LONGEST_TIMER_MS);
}

/** The wait in milliseconds; 0 for "0" and "0s". */
export function parseWait(given: Duration, name: string): number {
  const text = asText(given);
  const ms = /^0(?:m?s)?$/.test(text) ? 0 : readDuration(text, LONGEST_TIMER_MS);
  if (ms !== null) return ms;
  throw invalidDuration(given, name, `${allowedDuration(LONGEST_TIMER_MS)}, or 0 to try only once`, LONGEST_TIMER_MS);
}

export function parseReason(text: string, name: string): string {
  if (text.trim() !== "" && text.length <= LONGEST_REASON) return text;
  const why = text.length > LONGEST_REASON ? `is ${text.length} characters long` : "is empty";
  const allowed = `Allowed: why the lease is taken over, in 1 to ${LONGEST_REASON} characters`;
  throw new FleetError("FLEET_USAGE_INVALID", `${name} ${quote(text)} ${why}. ${allowed}.`, {
    suggestions: [`Give a reason such as "maintenance".`],
  });
}

function asText(given: Duration): string {
  return typeof given === "number" ? `${given}ms` : given;
}
