import { FleetError, quote, type Suggestion } from "../errors.js";
import { SCHEMA } from "../model/registry.js";

/** @param where a path, a key or a database, here and below */
export function newerError(where: string, schema: number): FleetError {
  const message = `${quote(where)} has schema ${schema}, written by a newer copilotfleet; this one knows ${SCHEMA}. Nothing was changed.`;
  return new FleetError("FLEET_STATE_NEWER", message, { suggestions: ["npm install --global copilotfleet@latest"] });
}

export function corruptError(where: string, detail: string, mend: Suggestion, cause?: unknown): FleetError {
  return new FleetError("FLEET_STATE_CORRUPT", `The state in ${quote(where)} is not readable: ${detail}.`, {
    suggestions: ["copilotfleet doctor", mend],
    cause,
  });
}

/** @param what the rest of a sentence about the state: `could not be changed …` */
export function busyError(where: string, what: string): FleetError {
  return new FleetError("FLEET_STATE_BUSY", `The state in ${quote(where)} ${what}.`, {
    suggestions: ["Run the command again when fewer other commands are running."],
  });
}
