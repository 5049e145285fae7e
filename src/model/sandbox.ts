/** Everything that a sandbox may restrict. A server without a sandbox lacks all of it. */
export const PROTECTIONS = {
  files: "read and write files of the fleet, of other users and of the machine, as far as the fleet's account can",
  processes: "read the memory and the environment of other processes of the fleet's account",
  signals: "send signals to other processes of the fleet's account",
  "system-calls": "use system calls that reach the kernel or the whole machine",
  metadata: "see the names of all files, and change modes, times and attributes of files that the fleet's account owns",
  "process-list": "see the names and the command lines of other processes",
  ipc: "use System V and POSIX message queues and shared memory of the fleet's account",
  "unix-sockets": "connect to the Unix sockets of other programs, and act through them, for example through Docker's",
  network: "connect to any address",
  "provider-key": "read the key of the model provider in the memory of the user's own server",
  resources:
    "use up the machine's memory, processes, processor time and disk, and slow down other processes of the account",
} as const;

export type Protection = keyof typeof PROTECTIONS;

export const ALL_PROTECTIONS = Object.keys(PROTECTIONS) as Protection[];

export const SANDBOX_MODES = ["landlock", "none"] as const;
export type SandboxMode = (typeof SANDBOX_MODES)[number];

/** The sandbox that a server runs in. */
export interface SandboxReport {
  mode: SandboxMode;
  /** The protections that it does not give. */
  not: readonly Protection[];
  /** The limits of the server with everything that it starts. Absent if the configuration sets none. */
  limits?: LimitsReport;
}

/** The part of the system that holds a limit. `rlimit` holds it for each process, and `measuring` for each turn. */
export type LimitedBy = "cgroup-v2" | "cgroup-v1" | "rlimit" | "measuring";

export interface ResourceLimit {
  max: number;
  /** Null if nothing on this machine holds the limit. */
  by: LimitedBy | null;
}

export const RESOURCES = ["memory", "processes", "openFiles", "cpu", "disk"] as const;
export type Resource = (typeof RESOURCES)[number];

/**
 * The limits with which a server started. `memory` and `disk` are in bytes, and `cpu` is a number of processors. Null:
 * unlimited.
 */
export interface LimitsReport extends Readonly<Record<Resource, ResourceLimit | null>> {
  /** The folders of the server's control groups. */
  cgroups: readonly string[];
}

export const NO_SANDBOX: SandboxReport = { mode: "none", not: ALL_PROTECTIONS };

/** The protections that `other` gives and `sandbox` does not. */
export function lackingIn(sandbox: SandboxReport, other: SandboxReport): Protection[] {
  return sandbox.not.filter((protection) => !other.not.includes(protection));
}

/** Whether an agent in this sandbox can neither read nor write the files and the processes of other users and of the fleet. */
export function separates({ not }: SandboxReport): boolean {
  return (["files", "processes", "signals"] as const).every((protection) => !not.includes(protection));
}
