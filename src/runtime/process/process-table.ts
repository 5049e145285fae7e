import { constants, existsSync, readdirSync, readFileSync, readlinkSync, realpathSync } from "node:fs";
import { hostname, constants as osConstants } from "node:os";
import { FleetError, systemCode } from "../../errors.js";
import type { ProcessIdentity } from "../../model/process.js";

/*
 * This file, `sockets.ts` and `launches.ts` read what the kernel knows about processes from `/proc` (proc(5)). Every answer
 * is a snapshot: check an identity again right before you act on it.
 *
 * Every function throws FleetError `FLEET_PROCESSES_UNREADABLE` when this process has no file descriptors or memory left,
 * because a process that we cannot look at must not count as dead.
 */

let hostFacts: Pick<ProcessIdentity, "host" | "bootId" | "pidNamespace"> | undefined;

function thisHost(): Pick<ProcessIdentity, "host" | "bootId" | "pidNamespace"> {
  if (process.platform !== "linux") {
    throw new FleetError("FLEET_PLATFORM_UNSUPPORTED", `This version runs on Linux only, not on ${process.platform}.`, {
      suggestions: ["Run it in a Linux container or virtual machine."],
    });
  }
  hostFacts ??= {
    host: hostname(),
    bootId: readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim(),
    pidNamespace: readlinkSync("/proc/self/ns/pid"),
  };
  return hostFacts;
}

interface Stat {
  state: string;
  parent: number;
  session: number;
  threads: number;
  startTicks: string;
  /** As in wait(2): the signal in the low seven bits, the exit code from bit 8 on. 0 while the process runs. */
  waitStatus: number;
}

/** How a process ended. One of the two is null. */
export interface ProcessExit {
  signal: NodeJS.Signals | null;
  code: number | null;
}

const OWN_LIMITS = new Set(["EMFILE", "ENFILE", "ENOMEM"]);

/** Returns the result of `look`, or null if its target does not exist or belongs to another user. */
export function seen<T>(look: () => T): T | null {
  try {
    return look();
  } catch (error) {
    const code = systemCode(error) ?? "";
    if (!OWN_LIMITS.has(code)) return null;
    const message = `The processes of this machine cannot be listed, because this process has reached a limit (${code}).`;
    throw new FleetError("FLEET_PROCESSES_UNREADABLE", message, { cause: error, suggestions: ["ulimit -n"] });
  }
}

/** Reads `/proc/<pid>/stat`. Null when there is no such process. The name in it may contain spaces and parentheses. */
export function readStat(pid: number): Stat | null {
  const text = seen(() => readFileSync(`/proc/${pid}/stat`, "utf8"));
  if (text === null) return null;
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return {
    state: fields[0] ?? "X",
    parent: Number(fields[1]),
    session: Number(fields[3]),
    threads: Number(fields[17]),
    startTicks: fields[19] ?? "",
    waitStatus: Number(fields[49] ?? 0),
  };
}

/**
 * The identity of the process with this PID. Null when the process is gone or a zombie. When a process with several threads
 * ends, its first thread may be a zombie while the others still hold its sockets. Such a process counts as alive.
 */
export function identify(pid: number): ProcessIdentity | null {
  const host = thisHost();
  const stat = readStat(pid);
  if (stat === null || ((stat.state === "Z" || stat.state === "X") && stat.threads <= 1)) return null;
  return { ...host, pid, startTicks: stat.startTicks };
}

/** How a zombie ended: a process whose parent has not yet asked for its exit status. Null for any other process. */
export function exitOfZombie({ pid, startTicks }: ProcessIdentity): ProcessExit | null {
  const stat = readStat(pid);
  if (stat === null || stat.state !== "Z" || stat.startTicks !== startTicks) return null;
  const number = stat.waitStatus & 0x7f;
  if (number === 0) return { signal: null, code: stat.waitStatus >> 8 };
  const names = Object.entries(osConstants.signals) as [NodeJS.Signals, number][];
  const signal = names.find(([, value]) => value === number)?.[0];
  return signal === undefined ? null : { signal, code: null };
}

let self: ProcessIdentity | undefined;

export function ownIdentity(): ProcessIdentity {
  if (self === undefined) {
    const found = identify(process.pid);
    if (found === null) throw new FleetError("FLEET_INTERNAL", "/proc does not show this process.");
    self = found;
  }
  return self;
}

/**
 * Whether exactly this process is still running. False for a reused PID, after a reboot, for a zombie, and for a process of
 * another host or PID namespace. The host name is not compared, because it may change while processes run.
 */
export function isAlive(identity: ProcessIdentity): boolean {
  const found = identify(identity.pid);
  return (
    found !== null &&
    found.startTicks === identity.startTicks &&
    found.bootId === identity.bootId &&
    found.pidNamespace === identity.pidNamespace
  );
}

/** All live processes of a leader's process session. Empty when the leader is dead, because its PID may be reused. */
export function processesOfSession(leader: ProcessIdentity): ProcessIdentity[] {
  const members = pids().flatMap((pid) => (readStat(pid)?.session === leader.pid ? (identify(pid) ?? []) : []));
  return isAlive(leader) ? members : [];
}

/**
 * All live processes that have the file open for writing. With its log, this finds a server even between fork and exec, when
 * it still has the environment of its parent.
 */
export function writersOf(path: string): ProcessIdentity[] {
  if (!existsSync(path)) return [];
  const real = realpathSync(path);
  return pids().flatMap((pid) => (openFiles(pid).some((fd) => writes(pid, fd, real)) ? (identify(pid) ?? []) : []));
}

/** Empty when the process is gone or another user's. */
export function openFiles(pid: number): string[] {
  return seen(() => readdirSync(`/proc/${pid}/fd`)) ?? [];
}

function writes(pid: number, fd: string, path: string): boolean {
  if (seen(() => readlinkSync(`/proc/${pid}/fd/${fd}`)) !== path) return false;
  const info = seen(() => readFileSync(`/proc/${pid}/fdinfo/${fd}`, "utf8")) ?? ""; // it was just closed
  const flags = /^flags:\s+(\d+)$/m.exec(info)?.[1] ?? "0";
  return (Number.parseInt(flags, 8) & (constants.O_WRONLY | constants.O_RDWR)) !== 0;
}

export function pids(): number[] {
  return (seen(() => readdirSync("/proc")) ?? [])
    .map(Number)
    .filter((pid) => Number.isInteger(pid) && pid !== process.pid);
}

/** `RssAnon`, which is freed when the process ends. */
export function privateMemoryBytes(pid: number): number | null {
  const status = seen(() => readFileSync(`/proc/${pid}/status`, "utf8")) ?? "";
  const kilobytes = /^RssAnon:\s+(\d+) kB$/m.exec(status)?.[1];
  return kilobytes === undefined ? null : Number(kilobytes) * 1024;
}
