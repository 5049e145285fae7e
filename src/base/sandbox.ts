import { writeSize } from "./values/measures.js";

/**
 * The protections that a sandbox may give, each with what an agent can do without it. A server without a sandbox lacks
 * them all.
 */
export const PROTECTIONS = {
  files: "read and write files of the fleet, of other users and of the machine, as far as the fleet's account can",
  processes: "read the memory and the environment of other processes of the fleet's account",
  signals: "send signals to other processes of the fleet's account",
  "system-calls": "use system calls that reach the kernel or the whole machine",
  metadata: "see the names of all files, and change the modes and times of files that the fleet's account owns",
  "process-list": "see the names and the command lines of other processes",
  ipc: "use System V message queues, semaphores and shared memory of the fleet's account",
  "unix-sockets": "connect to the Unix sockets of other programs, and act through them, for example through Docker's",
  network: "connect to any address, and listen on every free port of the machine",
  resources:
    "use up the machine's memory, processes, processor time and disk, and slow down other processes of the account",
} as const;

export type Protection = keyof typeof PROTECTIONS;

export const ALL_PROTECTIONS = Object.keys(PROTECTIONS) as Protection[];

const SANDBOX_MODES = ["bwrap", "landlock", "none"] as const;
export type SandboxMode = (typeof SANDBOX_MODES)[number];

/** `public`: all public addresses. `allow-list`: only the hosts that the configuration allows. `none`: no host. */
export type RestrictedNetwork = "public" | "allow-list" | "none";

/** The sandbox that a server runs in. */
export interface SandboxReport {
  mode: SandboxMode;
  /** The protections that this sandbox does not give. */
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
  /** The part of the kernel that enforces the limits: control groups, or else the resource limits of each process. */
  by: "cgroup-v2" | "cgroup-v1" | "rlimits";
  /** The limits that apply to each process of the server alone, and not to all of them together. */
  perProcess: readonly ("memory" | "openFiles")[];
  /** The limits that nothing on this machine enforces. */
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

/** The fields of the report alone, from an object that may have other fields. */
export function sandboxReport({ mode, not, network, limits }: SandboxReport): SandboxReport {
  return { mode, not, ...(network === undefined ? {} : { network }), ...(limits === undefined ? {} : { limits }) };
}

/** Whether memory, processes, processor time and disk of a server, with everything that it starts, are all limited. */
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

/** Protections that a sandbox does not give, as a text: "network: open, resources: unlimited". */
export function notRestricted(not: readonly Protection[]): string {
  if (not.length === ALL_PROTECTIONS.length) return "everything: open";
  return not.map((protection) => `${protection}: ${protection === "resources" ? "unlimited" : "open"}`).join(", ");
}

/** The protections that `other` gives and `sandbox` does not. */
export function lackingIn(sandbox: SandboxReport, other: SandboxReport): Protection[] {
  return sandbox.not.filter((protection) => !other.not.includes(protection));
}

/**
 * Whether an agent in this sandbox can neither read nor write the files and the processes of other users and of the
 * fleet, not even through the Unix sockets of other programs.
 */
export function separates({ not }: SandboxReport): boolean {
  const needed = ["files", "processes", "signals", "unix-sockets"] as const;
  return needed.every((protection) => !not.includes(protection));
}

/**
 * The port of the proxy and of the model gateways in a server's network namespace. The bridge (`native/network.c`)
 * passes connections to their addresses (see below) on to Unix sockets in the network folder.
 */
export const WAY_OUT_PORT = 3128;

/** The address of the proxy for the allowed hosts. */
export const EGRESS_ADDRESS = "127.0.0.1";

/**
 * The address of every model gateway ends with this text, such as 127.20.30.0. The runtime (1.0.85) uses its proxy even
 * for loopback, except for addresses in a list. An entry of the list can be the end of an address, but not a range.
 */
export const GATEWAY_END = ".0";

/** The address of a model gateway, made from the name of its Unix socket. */
export function gatewayAddress(socketName: string): string {
  return `127.${socketName}`;
}
