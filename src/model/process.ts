/**
 * Identifies a process beyond its PID. A PID is reused, but a start time within one boot and one PID namespace is not.
 * Sources: `/proc/sys/kernel/random/boot_id`, `/proc/self/ns/pid`, field 22 of `/proc/<pid>/stat` (proc(5)).
 */
export interface ProcessIdentity {
  host: string;
  bootId: string;
  pidNamespace: string;
  pid: number;
  /** Clock ticks after boot at which the process started (on macOS the text of `ps -o lstart=`). */
  startTicks: string;
}

/** A process, and the operation that it made the claim for. */
export interface Claim extends ProcessIdentity {
  /** Absent in records of earlier versions. */
  move?: string;
}
