import { FleetError, systemCode } from "../errors.js";

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

/** A process that may open fewer files than this may fail even to load the command. */
const FEW = 64;

/** The error for a process that has reached its limit of open files. */
export function filesExhausted(cause: unknown): FleetError {
  const message = `This process may open only ${openFiles() ?? "a few"} files at once, which is too few.`;
  return new FleetError("FLEET_FILES_EXHAUSTED", message, {
    cause,
    suggestions: [
      "ulimit -n 1024",
      "If the shell refuses this, raise the hard limit: `LimitNOFILE=` of a unit, or `nofile` in limits.conf.",
    ],
  });
}

/** Whether the error shows that this process has reached its limit of open files. */
export function lacksFiles(error: unknown): boolean {
  return systemCode(error) === "EMFILE";
}

/** Whether an error that does not name its cause, such as one of oclif, may come from the limit of open files. */
export function mayLackFiles(): boolean {
  return (openFiles() ?? FEW) < FEW;
}

/**
 * The number of files that this process may have open at once. Undefined if there is no limit. Does not open a file.
 */
function openFiles(): number | undefined {
  const { userLimits } = process.report.getReport() as { userLimits?: { open_files?: { soft: unknown } } };
  const soft = userLimits?.open_files?.soft;
  return typeof soft === "number" ? soft : undefined;
}
