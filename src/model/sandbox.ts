import { writeSize } from "../config/values/size.js";

/** Everything that a sandbox may restrict. A server without a sandbox lacks all of it. */
export const PROTECTIONS = {
  files: "read and write files of the fleet, of other users and of the machine, as far as the fleet's account can",
  processes: "read the memory and the environment of other processes of the fleet's account",
  signals: "send signals to other processes of the fleet's account",
  "system-calls": "use system calls that reach the kernel or the whole machine",
  metadata: "see the names of all files, and change modes, times and attributes of files that the fleet's account owns",
  "process-list": "see the names and the command lines of other processes",
  ipc: "use System V message queues, semaphores and shared memory of the fleet's account",
  "unix-sockets": "connect to the Unix sockets of other programs, and act through them, for example through Docker's",
  network: "connect to any address",
  "provider-key": "read the key of the model provider in the memory of the user's own server",
  resources:
    "use up the machine's memory, processes, processor time and disk, and slow down other processes of the account",
} as const;

export type Protection = keyof typeof PROTECTIONS;

export const ALL_PROTECTIONS = Object.keys(PROTECTIONS) as Protection[];

export const SANDBOX_MODES = ["bwrap", "landlock", "none"] as const;
export type SandboxMode = (typeof SANDBOX_MODES)[number];

/** `allow-list`: only the hosts that the configuration allows. `none`: no host. */
export type RestrictedNetwork = "allow-list" | "none";

/** The sandbox that a server runs in. */
export interface SandboxReport {
  mode: SandboxMode;
  /** The protections that it does not give. */
  not: readonly Protection[];
  /** How the network is restricted. Absent if it is open. */
  network?: RestrictedNetwork;
  /** The limits of the server with everything that it starts. Absent if the configuration sets none. */
  limits?: LimitsReport;
}

export const RESOURCES = ["memory", "processes", "openFiles", "cpu", "disk"] as const;
export type Resource = (typeof RESOURCES)[number];

/**
 * The limits with which a server started. `memory` and `disk` are in bytes, and `cpu` is a number of processors. Null:
 * unlimited.
 */
export interface LimitsReport extends Readonly<Record<Resource, number | null>> {
  /** The part of the kernel that holds the limits: control groups, or else the resource limits of each process. */
  by: "cgroup-v2" | "cgroup-v1" | "rlimits";
  /** The limits that hold for each process of the server, and not for all of them together. */
  perProcess: readonly ("memory" | "openFiles")[];
  /** The limits that nothing on this machine holds. */
  notHeld: readonly ("processes" | "cpu")[];
  /** The folders of the server's control groups. */
  cgroups: readonly string[];
  /** How often the running server reached limits of its control groups. Absent if it does not run, and in records. */
  reached?: LimitsReached;
}

export interface LimitsReached {
  /** How many processes the kernel killed. */
  memory: number;
  /** How many processes and threads the kernel did not start. */
  processes: number;
  /** In how many tenths of a second the kernel made processes wait. */
  cpu: number;
}

/** The report alone, without the other parts of an object that has it. */
export function sandboxReport({ mode, not, network, limits }: SandboxReport): SandboxReport {
  return { mode, not, ...(network === undefined ? {} : { network }), ...(limits === undefined ? {} : { limits }) };
}

/** Whether one server with everything that it starts is limited in all that it could use up. */
export function limitsResources({ memory, processes, cpu, disk, perProcess, notHeld }: LimitsReport): boolean {
  const isComplete = [memory, processes, cpu, disk].every((limit) => limit !== null);
  return isComplete && !perProcess.includes("memory") && notHeld.length === 0;
}

/** Each limit as a text: "memory 512mb", "openFiles 64 per process", "cpu 0.5 not held". */
export function limitTexts(limits: LimitsReport): string[] {
  const perProcess: readonly Resource[] = limits.perProcess;
  const notHeld: readonly Resource[] = limits.notHeld;
  return RESOURCES.flatMap((resource) => {
    const max = limits[resource];
    if (max === null) return [];
    const amount = resource === "memory" || resource === "disk" ? writeSize(max) : max;
    const how = perProcess.includes(resource) ? " per process" : notHeld.includes(resource) ? " not held" : "";
    return [`${resource} ${amount}${how}`];
  });
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

/**
 * The port of the addresses in the network namespace of a server. The bridge (`native/network.c`) passes connections to them on
 * to Unix sockets in the network folder.
 */
export const WAY_OUT_PORT = 3128;

/** The proxy for the allowed hosts. */
export const EGRESS_ADDRESS = "127.0.0.1";

/**
 * Model gateways have addresses with this end, such as 127.20.30.0. The runtime (1.0.85) sends even requests to loopback to a
 * proxy. Its list of exceptions knows ends of names and of addresses, and no ranges.
 */
export const GATEWAY_END = ".0";

/** The address of a model gateway, for the name of its Unix socket. */
export function gatewayAddress(socketName: string): string {
  return `127.${socketName}`;
}
