import {
  ALLOWED_LEASE_TTL,
  allowedDuration,
  LONGEST_TIMER_MS,
  readDuration,
  readLeaseTtl,
} from "../config/duration.js";
import type { Config } from "../config/schema.js";
import { FleetError, quote } from "../errors.js";
import { validateSessionId, validateUser } from "./ids.js";
import type { AcquireOptions } from "./leases.js";

/** How the lease on a session is asked for, by a program or a command. */
export interface LockOptions {
  /** Who is to hold it: the owner of the session, or a member. */
  user: string;
  /** How long it outlives a holder that died, such as `300s`: 1s to 24d. Default: `lock.ttl` of the configuration. */
  ttl?: string;
  /** How long to wait for others, such as `30s`; `0` tries once. Default: `30s`. */
  wait?: string;
  /** Take it at once, whoever holds it. The reason must not be empty; it is shown to everybody. */
  steal?: { reason: string };
  signal?: AbortSignal;
}

const WAIT_MS = 30_000;
/** It is shown in a table, and kept in every revision. */
const LONGEST_REASON = 500;

/** @throws FleetError a usage error for whatever is not allowed. */
export function acquireOptions(sessionId: string, options: LockOptions, { lock }: Config): AcquireOptions {
  const { user, ttl, wait, steal, signal } = options;
  return {
    sessionId: validateSessionId(sessionId, "sessionId"),
    holder: validateUser(user, "user"),
    ttlMs: ttl === undefined ? lock.ttlMs : parseLeaseTtl(ttl, "ttl"),
    waitMs: wait === undefined ? WAIT_MS : parseWait(wait, "wait"),
    ...(steal === undefined ? {} : { steal: { reason: parseReason(steal.reason, "reason") } }),
    ...(signal === undefined ? {} : { signal }),
  };
}

/** Milliseconds. @throws FleetError `FLEET_DURATION_INVALID`. */
export function parseLeaseTtl(text: string, name: string): number {
  const ms = readLeaseTtl(text);
  if (ms !== null) return ms;
  throw invalidDuration(text, name, ALLOWED_LEASE_TTL, "300s");
}

/** Milliseconds; 0 for "0" and "0s". @throws FleetError `FLEET_DURATION_INVALID`. */
export function parseWait(text: string, name: string): number {
  const ms = /^0s?$/.test(text) ? 0 : readDuration(text, LONGEST_TIMER_MS);
  if (ms !== null) return ms;
  throw invalidDuration(text, name, `${allowedDuration(LONGEST_TIMER_MS)}; or 0, not to wait`, "30s");
}

/** @throws FleetError `FLEET_USAGE_INVALID`. */
export function parseReason(text: string, name: string): string {
  if (text.trim() !== "" && text.length <= LONGEST_REASON) return text;
  const why = text.length > LONGEST_REASON ? `is ${text.length} characters long` : "is empty";
  const allowed = `say why the lease is taken over, in 1 to ${LONGEST_REASON} characters`;
  throw new FleetError("FLEET_USAGE_INVALID", `${name} ${quote(text)} ${why}: ${allowed}.`);
}

function invalidDuration(text: string, name: string, allowed: string, example: string): FleetError {
  return new FleetError("FLEET_DURATION_INVALID", `${name} is ${quote(text)}: allowed is ${allowed}`, {
    suggestions: [`Give ${name} a unit, for example "${example}"`],
  });
}
