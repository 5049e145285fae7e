import { FleetError, systemCode } from "../../errors.js";

const OWN_LIMITS = new Set(["EMFILE", "ENFILE", "ENOMEM", "EAGAIN"]);

/**
 * Whether the error shows that this process or the machine reached a limit. In that case, the system did not answer our
 * question.
 */
export function isOwnLimit(error: unknown): boolean {
  return OWN_LIMITS.has(systemCode(error) ?? "");
}

/**
 * Returns the result of `look`, or null if its target does not exist or belongs to another user.
 *
 * @throws FleetError `FLEET_FILES_EXHAUSTED` when a limit of this process or machine prevents the look
 */
export function seen<T>(look: () => T): T | null {
  try {
    return look();
  } catch (error) {
    if (!isOwnLimit(error)) return null;
    const message = `The processes of this machine cannot be listed, because this process has reached a limit (${systemCode(error)}).`;
    throw new FleetError("FLEET_FILES_EXHAUSTED", message, { cause: error, suggestions: ["ulimit -n"] });
  }
}
