import parse from "parse-duration";
import { FleetError, quote } from "../errors.js";

const DAY_MS = 24 * 60 * 60 * 1000;

/** Longer than any age limit in practice; what is above is a slip of the keyboard. */
export const LONGEST_MS = 3650 * DAY_MS;

/**
 * The longest wait that a Node timer keeps: `setTimeout` takes at most 2^31-1 ms and turns anything above into 1 ms, so
 * that an interval of "30d" would spin instead of sleep.
 */
export const LONGEST_TIMER_MS = 24 * DAY_MS;

/** A lease shorter than that could not be renewed reliably: a busy machine delays a process by a good part of a second. */
export const SHORTEST_LEASE_MS = 1_000;

/** "allowed is …" for the TTL of a lease. */
export const ALLOWED_LEASE_TTL =
  'a number with a unit (ms, s, m, h, d, w), such as "300s", from 1s to 24d, which is what a timer holds';

// parse-duration reads prose ("5 parsecs" is 5 ms to it, "1e4s" 10,000 s). It does the arithmetic; this decides what is
// a duration at all. Linear: a digit never starts a unit.
const GRAMMAR = /^(?:\d+(?:\.\d+)?(?:ms|s|m|h|d|w))+$/;
const LONGEST_TEXT = 64;

/** "allowed is …": the sentence's end for a message about a duration. */
export function allowedDuration(maxMs: number): string {
  const longest = maxMs >= LONGEST_MS ? "10 years" : `${Math.floor(maxMs / DAY_MS)}d`;
  return `a number with a unit (ms, s, m, h, d, w), such as "30s" or "1h30m", above 0 and at most ${longest}`;
}

/** Whole milliseconds from 1 to `maxMs`, or null when `text` is anything else. */
export function readDuration(text: string, maxMs: number): number | null {
  if (text.length > LONGEST_TEXT || !GRAMMAR.test(text)) return null;
  const ms = Math.round(parse(text) ?? 0);
  return ms >= 1 && ms <= maxMs ? ms : null;
}

/** {@link readDuration} for the TTL of a lease. */
export function readLeaseTtl(text: string): number | null {
  const ms = readDuration(text, LONGEST_TIMER_MS);
  return ms !== null && ms >= SHORTEST_LEASE_MS ? ms : null;
}

/** How long something takes: a text such as "30s" or "1h30m", or milliseconds. */
export type Duration = string | number;

export interface DurationBounds {
  /** The name of the value in the message: a flag ("--ttl"), an option or a key ("session.ttl"). */
  name: string;
  /** The longest that is allowed, in milliseconds; 10 years by default. */
  maxMs?: number;
  /** Whether 0 is allowed. */
  orZero?: boolean;
}

/**
 * Milliseconds of a duration such as "24h", "1h30m" or "1.5h". A number is a number of milliseconds.
 *
 * @throws FleetError `FLEET_DURATION_INVALID`.
 */
export function parseDuration(given: Duration, { name, maxMs = LONGEST_MS, orZero = false }: DurationBounds): number {
  if (orZero && (given === 0 || given === "0" || given === "0s")) return 0;
  const ms = typeof given === "number" ? readMilliseconds(given, maxMs) : readDuration(given, maxMs);
  if (ms !== null) return ms;
  throw new FleetError(
    "FLEET_DURATION_INVALID",
    `${name} is ${quote(given)}: allowed is ${allowedDuration(maxMs)}${orZero ? "; or 0" : ""}`,
    { suggestions: [`Give ${name} a unit, for example "24h"`] },
  );
}

/** Whole milliseconds from 1 to `maxMs`, or null. */
function readMilliseconds(given: number, maxMs: number): number | null {
  const ms = Math.round(given);
  return ms >= 1 && ms <= maxMs ? ms : null;
}
