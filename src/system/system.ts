import { FleetError, quote } from "../errors.js";
import { linux } from "./linux/linux.js";
import { posix } from "./posix/posix.js";

/*
 * The questions to the operating system that Node.js does not answer. `linux/` reads `/proc`. `posix/` runs `ps`, `lsof` and
 * similar programs, takes a hundred times as long, and finds out less. `test/contract/system.contract.ts` tests both.
 */

/**
 * The flag O_PATH of fcntl.h, which has this value on all processors that the runtime supports. Node.js has no constant
 * for it.
 */
export const O_PATH = 0o10000000;

export interface System {
  readonly processes: ProcessTable;
  readonly files: FileSystems;
  readonly clock: BootClock;
}

/** A process that was alive when we looked. */
export interface SeenProcess {
  pid: number;
  parent: number;
  /** The time of its start, in the system's own form. It distinguishes two processes with the same PID. */
  started: string;
}

export interface ProcessVariables extends SeenProcess {
  /** The variables that were asked for, as in the environment with which the process started. */
  variables: Readonly<Record<string, string | undefined>>;
}

/** How a process ended. One of the two is null. */
export interface ProcessExit {
  signal: NodeJS.Signals | null;
  code: number | null;
}

/**
 * Shows the processes that the kernel knows. Every answer is a snapshot: look again right before you act on it. Zombies count as
 * gone. Lists leave out this process, and processes of other users about which the kernel does not answer.
 *
 * Every method throws FleetError `FLEET_PROCESSES_UNREADABLE` when it cannot look, because a process that we cannot look at
 * must not count as dead.
 */
export interface ProcessTable {
  /** The PID namespace of this process. Within a namespace, no two processes have the same PID at the same time. */
  namespace(): string;
  find(pid: number): SeenProcess | null;
  /** The PID of the process in its own PID namespace, or null if it is gone or if the system does not show this PID. */
  innerPid(pid: number): number | null;
  /**
   * How a zombie ended. A zombie is a dead process whose parent has not asked for its exit status so far. With `then`,
   * the zombie must have started exactly at `started`; with `then or before`, at that time or earlier. Null for any
   * other process.
   */
  exitOfZombie(pid: number, started: string, when?: "then" | "then or before"): ProcessExit | null;
  /** The members of the process session with this leader. */
  inSession(leader: number): SeenProcess[];
  withVariable(name: string, value: string): SeenProcess[];
  /** All processes, each with the named variables that are in its environment. Another user's process may show none. */
  withEnvironment(names: readonly string[]): ProcessVariables[];
  /** The processes of this account with this soft limit on file locks. Empty if the system does not show limits. */
  withLockLimit(limit: number): SeenProcess[];
  /**
   * Makes the system prefer a process, with all that it starts from then on, when it has to end one because the memory is
   * used up. Does nothing where the system has no such preference.
   */
  endFirst(pid: number): void;
  /**
   * Overwrites variables in the environment that the system shows of a process, after the process has read them. Does
   * nothing for a process that is gone. Returns whether the system no longer shows the variables.
   */
  hideVariables(pid: number, names: readonly string[]): boolean;
  /**
   * The descriptors beyond standard error that a child of this process would inherit. Node.js does not let children
   * inherit its own descriptors, so the program that started this process left these open. Leaves out those above the
   * limit of open files, because no process can use their numbers. Empty if the system does not show them.
   */
  inheritedDescriptors(): number[];
  /** Whether new namespaces are allowed at all. If not, the kernel's error is the same as when there are too many. */
  allowsNamespaces(): boolean;
  /** The processes that have the file open for writing. */
  writersOf(path: string): SeenProcess[];
  /**
   * Whether the process itself has a TCP socket that listens on the port. Looks in the network namespace of the process
   * `seenFrom`. Default: the process itself.
   */
  listensOn(pid: number, port: number, seenFrom?: number): boolean;
  /** Returns those of `ports` to which a client is connected. Ignores clients whose own port is in `except`. */
  connectedPorts(ports: ReadonlySet<number>, except: ReadonlySet<number>): Set<number>;
  /** How many bytes of memory the end of the process would free. Null when the process is gone. */
  privateMemoryBytes(pid: number): number | null;
  /**
   * The control groups that a process is in, one for each hierarchy. Without `pid`: the groups of this process. Empty
   * if the system has none or does not show them.
   */
  controlGroups(pid?: number): ControlGroup[];
}

/** A control group of Linux (cgroups(7)). */
export interface ControlGroup {
  version: 1 | 2;
  /** The controllers of the hierarchy. Version 2 names them in a file of the folder. */
  controllers: readonly string[];
  /** Where the hierarchy is mounted. */
  mountPoint: string;
  /** The folder of the group. */
  folder: string;
}

export interface FileSystem {
  /** As the kernel names it: `ext4`, `nfs4`, `fuse.sshfs`. */
  type: string;
  /** The device that is mounted, or the export of a file server. */
  source: string;
  mountPoint: string;
}

export interface FileSystems {
  /** The file system that a path is on. */
  of(path: string): FileSystem;
  /** Why the folder's file system cannot contain the state. Null if it can, or is unknown. @throws a system error. */
  unfit(folder: string): UnfitFileSystem | null;
  /**
   * The path of an open folder or file. An entry below it belongs to that very folder, even if somebody has replaced the
   * folder's own path with a link.
   */
  pathOf(fd: number): string;
}

export interface UnfitFileSystem {
  /** `kernel`: it cannot keep files. `network`: several hosts may share it. */
  kind: "kernel" | "network";
  name: string;
}

/** A clock that all processes of the machine share, and that nobody can set. */
export interface BootClock {
  /** Differs after each start of the machine. Times of different boots are not comparable. */
  bootId(): string;
  /** Milliseconds since a moment of this boot. */
  nowMs(): number;
}

/** For the tests, and for people who try the command on another system: `posix` selects the second implementation. */
const VARIABLE = "COPILOTFLEET_SYSTEM";

let chosen: System | undefined;

/**
 * Returns the implementation for this operating system, or the one that the variable selects.
 *
 * @throws FleetError `FLEET_PLATFORM_UNSUPPORTED` on any system but Linux, unless the variable selects an implementation;
 *   `FLEET_CONFIG_INVALID` for another value of the variable
 */
export function system(): System {
  chosen ??= choose(process.env[VARIABLE], process.platform);
  return chosen;
}

export function choose(variable: string | undefined, platform: NodeJS.Platform): System {
  if (variable !== undefined && variable !== "" && variable !== "posix") {
    throw new FleetError("FLEET_CONFIG_INVALID", `${VARIABLE} is ${quote(variable)}. Allowed: "posix".`, {
      suggestions: [`unset ${VARIABLE}`],
    });
  }
  if (variable === "posix" && platform !== "win32") return posix(platform);
  if (platform === "linux") return linux;
  throw new FleetError("FLEET_PLATFORM_UNSUPPORTED", `This version runs on Linux only, not on ${platform}.`, {
    suggestions: ["Run it in a Linux container or virtual machine."],
  });
}
