import { FleetError, isFleetError, quote, type Suggestion } from "../base/errors.js";
import { SCHEMA } from "../base/server.js";
import { isOwnLimit } from "../base/system/own-limits.js";

/** @param where a path, a Redis key or a database, here and in the other functions of this file */
export function newerError(where: string, schema: number): FleetError {
  const message = `${quote(where)} has schema ${schema}, written by a newer copilotfleet; this one knows ${SCHEMA}. Nothing was changed.`;
  return new FleetError("FLEET_PROTOCOL_UNSUPPORTED", message, {
    suggestions: ["npm install --global copilotfleet@latest"],
  });
}

/** State from before there was a release is not converted. @param mend what to do instead */
export function olderError(where: string, mend: Suggestion): FleetError {
  const message = `${quote(where)} was written by a copilotfleet from before the release of 0.2.0, and this version cannot read it. Nothing was changed.`;
  return new FleetError("FLEET_PROTOCOL_UNSUPPORTED", message, { suggestions: [mend] });
}

export function corruptError(
  where: string,
  detail: string,
  mend: Suggestion | readonly Suggestion[],
  cause?: unknown,
): FleetError {
  return new FleetError("FLEET_STATE_CORRUPT", `The state in ${quote(where)} is not readable: ${detail}.`, {
    suggestions: ["copilotfleet doctor", ...[mend].flat()],
    cause,
  });
}

/** The error of a record that cannot be read. */
export type UnreadableError = FleetError & {
  readonly code: "FLEET_STATE_CORRUPT" | "FLEET_STATE_UNSIGNED" | "FLEET_STATE_UNWRITABLE";
};

/** Whether a read failed because the record is damaged, or does not carry the fleet's signature. */
export function isDamaged(
  error: unknown,
): error is FleetError & { readonly code: "FLEET_STATE_CORRUPT" | "FLEET_STATE_UNSIGNED" } {
  return isFleetError(error, "FLEET_STATE_CORRUPT") || isFleetError(error, "FLEET_STATE_UNSIGNED");
}

/**
 * Whether a read failed because of the record itself: the record is damaged or unsigned, or its disk or file mode
 * prevents the read. A limit of this process or machine, such as too many open files, does not count, because it may
 * affect every record.
 */
export function isUnreadable(error: unknown): error is UnreadableError {
  if (isFleetError(error, "FLEET_STATE_UNWRITABLE")) return !isOwnLimit(error.cause);
  return isDamaged(error);
}

/** @param what completes the message `The state in "PATH" …`, such as `could not be changed` */
export function busyError(where: string, what: string): FleetError {
  return new FleetError("FLEET_STATE_BUSY", `The state in ${quote(where)} ${what}.`, {
    suggestions: ["Run the command again when fewer other commands are running."],
  });
}
