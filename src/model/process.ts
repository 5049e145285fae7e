/**
 * Identifies a process beyond its PID. PIDs are reused, but within one boot and one PID namespace no two processes have the
 * same PID and start time. `system/` reads these facts.
 */
export interface ProcessIdentity {
  host: string;
  bootId: string;
  pidNamespace: string;
  pid: number;
  /** When the process started: clock ticks after boot. Where only `ps` reports it, the text of its column `lstart`. */
  startTicks: string;
  /** The PID of the process in its own PID namespace. Absent if that namespace is `pidNamespace`. */
  innerPid?: number;
  /** The process that passes connections to the identified process, if that one has its own network namespace. */
  bridge?: Pick<ProcessIdentity, "pid" | "startTicks">;
}

/** The PID of a process, and its PID in its own PID namespace if the two differ. */
export type OwnView = Pick<ProcessIdentity, "pid" | "innerPid">;

/** The process that is changing the state of a server. `move` names that change. */
export interface Claim extends ProcessIdentity {
  move?: string;
}

/** Every server has this variable in its environment. It names the launch that started the server. */
export const LAUNCH_VARIABLE = "COPILOTFLEET_LAUNCH_ID";
