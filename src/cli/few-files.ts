import { FleetError, systemCode } from "../errors.js";

/** A process with a lower limit may have too few files even to load the command. */
const FEW = 64;

/** The error of a process that may open no more files. */
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

export function lacksFiles(error: unknown): boolean {
  return systemCode(error) === "EMFILE";
}

/** Whether the limit may be the cause of an error. Used for errors that do not name their cause, such as those of oclif. */
export function mayLackFiles(): boolean {
  return (openFiles() ?? FEW) < FEW;
}

/** The number of files that this process may have open at once. Undefined if there is no limit. Opens no file. */
function openFiles(): number | undefined {
  const { userLimits } = process.report.getReport() as { userLimits?: { open_files?: { soft: unknown } } };
  const soft = userLimits?.open_files?.soft;
  return typeof soft === "number" ? soft : undefined;
}
