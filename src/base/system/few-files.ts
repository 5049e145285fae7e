import { FleetError, systemCode } from "../errors.js";

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

/** The number of files that this process may have open at once. Undefined if there is no limit. Does not open a file. */
function openFiles(): number | undefined {
  const { userLimits } = process.report.getReport() as { userLimits?: { open_files?: { soft: unknown } } };
  const soft = userLimits?.open_files?.soft;
  return typeof soft === "number" ? soft : undefined;
}
