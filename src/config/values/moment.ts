import { FleetError, quote } from "../../errors.js";
import { allowedDuration, LONGEST_MS, readDuration } from "./duration.js";

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
