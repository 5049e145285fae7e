import parse from "parse-duration";
import { FleetError, quote } from "../errors.js";
import { wholeNumberFault } from "./text.js";

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
const DURATION_GRAMMAR = /^(?:\d+(?:\.\d+)?(?:ms|s|m|h|d|w))+$/;
const LONGEST_TEXT = 64;

/** A regular expression that all durations match, for schemas/config.json. */
export const DURATION_PATTERN: string = DURATION_GRAMMAR.source;

/** The text after "Allowed:" in a message about a duration. */
export function allowedDuration(maxMs: number): string {
  return `a number with a unit (ms, s, m, h, d, w), such as "30s" or "1h30m", above 0 and at most ${writeDuration(maxMs)}`;
}

/** Returns whole milliseconds from 1 to `maxMs`, or null if `text` is anything else. */
export function readDuration(text: string, maxMs: number): number | null {
  if (text.length > LONGEST_TEXT || !DURATION_GRAMMAR.test(text)) return null;
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
  const message = `${name} is ${quote(given)}, ${durationFault(given, maxMs)}. Allowed: ${allowed}`;
  const example = maxMs > LONGEST_TIMER_MS ? "24h" : "30s";
  return new FleetError("FLEET_USAGE_INVALID", message, {
    suggestions: [`Write a number with a unit, such as ${example}.`],
  });
}

/** States why a value is not a duration of at most `maxMs`. */
export function durationFault(given: Duration, maxMs: number): string {
  if (typeof given === "string" && !DURATION_GRAMMAR.test(given)) return formFault(given);
  const ms = typeof given === "string" ? (parse(given) ?? 0) : given;
  if (Number.isNaN(ms)) return "which is not a number";
  return ms > maxMs ? `which is longer than ${writeDuration(maxMs)}` : "which is too short";
}

function readMilliseconds(given: number, maxMs: number): number | null {
  const ms = Math.round(given);
  return ms >= 1 && ms <= maxMs ? ms : null;
}

/** Never guesses a unit: `gc --ttl 5` could delete everything. */
function formFault(given: string): string {
  return /^\d+(?:\.\d+)?$/.test(given) ? "which has no unit" : "which is not a number with a unit";
}

/** Reads a whole number within bounds, in plain digits. */
export function parseWhole(text: string, name: string, [min, max]: readonly [number, number]): number {
  const fault = wholeNumberFault(text, [min, max]) ?? (/^\d{1,9}$/.test(text) ? null : "which is too long");
  if (fault === null) return Number(text);
  const message = `${name} is ${quote(text)}, ${fault}. Allowed: a whole number from ${min} to ${max}`;
  throw new FleetError("FLEET_USAGE_INVALID", message, {
    suggestions: [`Write a number, such as ${Math.max(min, 1)}.`],
  });
}

const BYTES = { kb: 1024, mb: 1024 ** 2, gb: 1024 ** 3 };
const LARGEST_BYTES = 1024 * BYTES.gb;
const SIZE_GRAMMAR = /^(\d{1,15}(?:\.\d{1,9})?)([kmgKMG][bB])$/;

/** A regular expression that all sizes match, for schemas/config.json. */
export const SIZE_PATTERN: string = SIZE_GRAMMAR.source;

/** The text after "Allowed:" in a message about a size. */
export const ALLOWED_SIZE = 'a number with a unit (kb, mb, gb), such as "512mb", above 0 and at most 1024gb';

/** States why a text is not a size of at most `most`, such as "256mb". */
export function sizeFault(given: string, most = `${LARGEST_BYTES / BYTES.gb}gb`): string {
  const bytes = bytesOf(given);
  if (bytes === null) return formFault(given);
  return bytes > (bytesOf(most) ?? 0) ? `which is more than ${most}` : "which is too small";
}

/** Returns whole bytes from 1 to 1024 gb, or null if `text` is anything else. Units are powers of 1024. */
export function readSize(text: string): number | null {
  const bytes = bytesOf(text);
  return bytes !== null && bytes >= 1 && bytes <= LARGEST_BYTES ? bytes : null;
}

/** A size in the largest unit of which it is a whole number, such as "512mb", or else in bytes. */
export function writeSize(bytes: number): string {
  const units = Object.entries(BYTES).reverse();
  const [unit, factor] = units.find(([, size]) => bytes % size === 0) ?? [" bytes", 1];
  return `${bytes / factor}${unit}`;
}

function bytesOf(text: string): number | null {
  const [, amount = "", unit = ""] = SIZE_GRAMMAR.exec(text) ?? [];
  const factor = BYTES[unit.toLowerCase() as keyof typeof BYTES] as number | undefined;
  return factor === undefined ? null : Math.round(Number(amount) * factor);
}

/** A time in the past: a `Date`, a time in ISO 8601 such as "2026-01-31T12:00:00Z", or how long ago, such as "10m". */
export type Moment = Date | string;

const ISO = /^\d{4}-\d\d-\d\d(?:T\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:\d\d)?)?$/;

/** Returns the time in milliseconds since the epoch. A time without a zone is in UTC. */
export function parseMoment(given: Moment, name: string, nowMs = Date.now()): number {
  const ago = typeof given === "string" ? readDuration(given, LONGEST_MS) : null;
  const ms = ago === null ? millisecondsOf(given) : nowMs - ago;
  if (!Number.isNaN(ms)) return ms;
  throw new FleetError(
    "FLEET_USAGE_INVALID",
    `${name} is ${quote(given)}. Allowed: ${allowedDuration(LONGEST_MS)}, or a time such as "2026-01-31T12:00:00Z"`,
    { suggestions: [`Write how long ago, such as ${name} 10m, or a time, such as ${name} 2026-01-31T12:00:00Z.`] },
  );
}

function millisecondsOf(given: Moment): number {
  if (typeof given !== "string") return given.getTime();
  if (!ISO.test(given)) return Number.NaN;
  const hasZone = !given.includes("T") || /(?:Z|[+-]\d\d:\d\d)$/.test(given);
  return Date.parse(hasZone ? given : `${given}Z`);
}
