/**
 * Identifies a process beyond its PID. A PID is reused, but a start time within one boot and one PID namespace is not.
 * `system/` reads these facts.
 */
export interface ProcessIdentity {
  host: string;
  bootId: string;
  pidNamespace: string;
  pid: number;
  /** When the process started: clock ticks after boot, or with `ps` the text of `lstart`. */
  startTicks: string;
}

/** A process, and the operation that it made the claim for. */
export interface Claim extends ProcessIdentity {
  /** Absent in records of earlier versions. */
  move?: string;
}
