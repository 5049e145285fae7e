import { FleetError, type Suggestion, systemCode } from "../errors.js";

export type Subject = "processes" | "file systems";

const OWN_LIMITS = new Set(["EMFILE", "ENFILE", "ENOMEM", "EAGAIN"]);

/**
 * Whether the error shows that this process or the machine reached a limit. In that case, the system did not answer our
 * question.
 */
export function isOwnLimit(error: unknown): boolean {
  return OWN_LIMITS.has(systemCode(error) ?? "");
}

export function unreadable(what: Subject, why: string, suggestion: Suggestion, cause?: unknown): FleetError {
  return new FleetError("FLEET_PROCESSES_UNREADABLE", `The ${what} of this machine cannot be listed, because ${why}.`, {
    cause,
    suggestions: [suggestion],
  });
}
