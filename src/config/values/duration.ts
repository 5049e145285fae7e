import parse from "parse-duration";
import { FleetError, quote } from "../../errors.js";
import { type Fault, measureFault } from "./measure.js";

const DAY_MS = 24 * 60 * 60 * 1000;

/** 10 years, in milliseconds. That is longer than any age limit in practice, so a higher value is a typing error. */
export const LONGEST_MS = 3650 * DAY_MS;

/** `setTimeout` takes at most 2^31-1 ms and turns anything above into 1 ms, so an interval of "30d" would spin. */
export const LONGEST_TIMER_MS = 24 * DAY_MS;

/** A shorter lease could not be renewed reliably, because a busy machine can delay a process by most of a second. */
export const SHORTEST_LEASE_MS = 1_000;

/** The text after "Allowed:" in a message about the TTL of a lease. */
export const ALLOWED_LEASE_TTL = 'a number with a unit (ms, s, m, h, d, w), such as "300s", from 1s to 24d';

// parse-duration also accepts prose: "5 parsecs" is 5 ms, and "1e4s" is 10,000 s. So this pattern decides what is a
// duration. Matching takes linear time, because a unit cannot start with a digit.
const GRAMMAR = /^(?:\d+(?:\.\d+)?(?:ms|s|m|h|d|w))+$/;
const LONGEST_TEXT = 64;

/** A regular expression that all durations match, for schemas/config.json. */
export const DURATION_PATTERN: string = GRAMMAR.source;

/** The text after "Allowed:" in a message about a duration. */
export function allowedDuration(maxMs: number): string {
  const longest = `${Math.floor(maxMs / DAY_MS)}d`;
  return `a number with a unit (ms, s, m, h, d, w), such as "30s" or "1h30m", above 0 and at most ${longest}`;
}

/** Returns whole milliseconds from 1 to `maxMs`, or null if `text` is anything else. */
export function readDuration(text: string, maxMs: number): number | null {
  if (text.length > LONGEST_TEXT || !GRAMMAR.test(text)) return null;
  const ms = Math.round(parse(text) ?? 0);
  return ms >= 1 && ms <= maxMs ? ms : null;
}

const UNITS = [
  ["d", DAY_MS],
  ["h", 60 * 60 * 1000],
  ["m", 60 * 1000],
  ["s", 1000],
  ["ms", 1],
] as const;

/** Writes a duration as {@link readDuration} reads it, such as "1m30s". */
export function writeDuration(ms: number): string {
  let left = Math.round(ms);
  const parts = UNITS.map(([unit, size]) => {
    const count = Math.floor(left / size);
    left -= count * size;
    return count === 0 ? "" : `${count}${unit}`;
  });
  return parts.join("") || "0s";
}

export function readLeaseTtl(text: string): number | null {
  const ms = readDuration(text, LONGEST_TIMER_MS);
  return ms !== null && ms >= SHORTEST_LEASE_MS ? ms : null;
}

/** A duration: text such as "30s" or "1h30m", or a number of milliseconds. */
export type Duration = string | number;

export interface DurationBounds {
  /** The name of the value in the message: a flag ("--ttl"), an option or a key ("session.ttl"). */
  name: string;
  /** The longest allowed duration, in milliseconds. The default is 10 years. */
  maxMs?: number;
  orZero?: boolean;
  /** The end of the text after "Allowed:". It names a value that the caller itself accepts, such as `never`. */
  also?: string;
}

/** Returns the milliseconds of a duration such as "24h", "1h30m" or "1.5h". */
export function parseDuration(
  given: Duration,
  { name, maxMs = LONGEST_MS, orZero = false, also = orZero ? ", or 0" : "" }: DurationBounds,
): number {
  if (orZero && (given === 0 || given === "0" || given === "0s")) return 0;
  const ms = typeof given === "number" ? readMilliseconds(given, maxMs) : readDuration(given, maxMs);
  if (ms !== null) return ms;
  throw invalidDuration(given, name, `${allowedDuration(maxMs)}${also}`, maxMs);
}

/** Returns the milliseconds of a lifetime; null for `never`. */
export function parseLifetime(given: Duration, name: string): number | null {
  return given === "never" ? null : parseDuration(given, { name, also: ", or never" });
}

/** The error for a value that is not a duration, or not in the range. */
export function invalidDuration(given: Duration, name: string, allowed: string, maxMs: number): FleetError {
  const { problem, advice } = durationFault(given, maxMs);
  return new FleetError("FLEET_DURATION_INVALID", `${name} is ${quote(given)}, ${problem}. Allowed: ${allowed}`, {
    suggestions: [advice],
  });
}

/** States why a value is not a duration of at most `maxMs`. */
export function durationFault(given: Duration, maxMs: number): Fault {
  const example = maxMs > LONGEST_TIMER_MS ? "24h" : "30s";
  const outOfRange = (ms: number) =>
    ms > maxMs ? `which is longer than ${writeDuration(maxMs)}` : "which is too short";
  if (typeof given === "string") {
    const read = (text: string) => outOfRange(parse(text) ?? 0);
    return measureFault(given, { units: ["s", "m", "h", "d", "w", "ms"], example, outOfRange: read });
  }
  const problem = Number.isNaN(given) ? "which is not a number" : outOfRange(given);
  return { problem, advice: `Write a number with a unit, such as ${example}.` };
}

function readMilliseconds(given: number, maxMs: number): number | null {
  const ms = Math.round(given);
  return ms >= 1 && ms <= maxMs ? ms : null;
}
