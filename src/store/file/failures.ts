import { getSystemErrorMap } from "node:util";
import { FleetError, quote, systemCode } from "../../errors.js";
import { SCHEMA } from "../../model/registry.js";

/**
 * Converts an error of the file system into an error of the contract. Other errors (a bug, or a FleetError) are
 * returned unchanged. Reading and writing share one code, and the message names the failed action.
 */
export function mediumError(action: "read" | "write", path: string, error: unknown): unknown {
  const code = systemCode(error);
  if (error instanceof FleetError || code === undefined) return error;
  const verb = action === "read" ? "read" : "written";
  return new FleetError("FLEET_STATE_UNWRITABLE", `The state in ${quote(path)} cannot be ${verb}: ${reason(error)}.`, {
    suggestions: [code === "ENOSPC" || code === "EDQUOT" ? `df -h ${path}` : `ls -ld ${path}`],
    cause: error,
  });
}

/** The system's description of the error: `no space left on device (ENOSPC)`. */
export function reason(error: unknown): string {
  const code = systemCode(error);
  if (code === undefined) return error instanceof Error ? error.message : String(error);
  const errno = error instanceof Error && "errno" in error && typeof error.errno === "number" ? error.errno : 0;
  const words = getSystemErrorMap().get(errno)?.[1];
  return words === undefined ? code : `${words} (${code})`;
}

export function newerError(path: string, schema: number): FleetError {
  return new FleetError(
    "FLEET_STATE_NEWER",
    `${quote(path)} has schema ${schema}, written by a newer copilotfleet; this one knows ${SCHEMA}. Nothing was changed.`,
    { suggestions: ["npm install --global copilotfleet@latest"] },
  );
}

export function corruptError(path: string, detail: string, mend: string): FleetError {
  return new FleetError("FLEET_STATE_CORRUPT", `The state in ${quote(path)} is not readable: ${detail}.`, {
    suggestions: ["copilotfleet doctor", mend],
  });
}

/** @param what The rest of a sentence about the state: `could not be changed …`. */
export function busyError(path: string, what: string): FleetError {
  return new FleetError("FLEET_STATE_BUSY", `The state in ${quote(path)} ${what}.`, {
    suggestions: ["Run the command again when fewer other commands are running."],
  });
}
