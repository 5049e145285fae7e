import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { hostname } from "node:os";
import { FleetError } from "../errors.js";
import type { ProcessIdentity } from "../store/store.js";

/**
 * What the operating system says of processes, read from `/proc` (proc(5)). Nothing here signals anything.
 * Every answer is a snapshot: prove an identity again right before acting on it.
 */

/** The variable every server carries in its environment, naming the launch that made it. */
export const LAUNCH_VARIABLE = "COPILOTFLEET_LAUNCH_ID";

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
  processGroup: number;
  startTicks: string;
}

/** `/proc/<pid>/stat`, or null when there is no such process. The name in it may hold spaces and brackets. */
function readStat(pid: number): Stat | null {
  let text: string;
  try {
    text = readFileSync(`/proc/${pid}/stat`, "utf8");
  } catch {
    return null; // gone, or never there: the same answer
  }
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return { state: fields[0] ?? "X", processGroup: Number(fields[2]), startTicks: fields[19] ?? "" };
}

/** The identity of a running process; null when it is gone or a zombie, which is as dead as gone. */
export function identify(pid: number): ProcessIdentity | null {
  const host = thisHost();
  const stat = readStat(pid);
  if (stat === null || stat.state === "Z" || stat.state === "X") return null;
  return { ...host, pid, startTicks: stat.startTicks };
}

let self: ProcessIdentity | undefined;

/** The identity of this very process. */
export function ownIdentity(): ProcessIdentity {
  if (self === undefined) {
    const found = identify(process.pid);
    if (found === null) throw new FleetError("FLEET_INTERNAL", "/proc does not show this very process.");
    self = found;
  }
  return self;
}

/**
 * Whether this very process still runs. A reused PID, a changed boot id (reboot) and a zombie all mean no. A process of
 * another host or PID namespace cannot be seen from here: also no, see {@link isLocal}.
 */
export function isAlive(identity: ProcessIdentity): boolean {
  if (!isLocal(identity)) return false;
  const found = identify(identity.pid);
  return found !== null && found.startTicks === identity.startTicks && found.bootId === identity.bootId;
}

/** Whether the identity was taken on this host, in this PID namespace (in whatever boot). */
export function isLocal(identity: ProcessIdentity): boolean {
  const host = thisHost();
  return identity.host === host.host && identity.pidNamespace === host.pidNamespace;
}

/** Whether `pid` itself holds the socket that listens on `address:port`: the proof before a token is sent there. */
export function ownsListener(pid: number, port: number): boolean {
  const inodes = listeningInodes(pid, port);
  if (inodes.size === 0) return false;
  try {
    for (const fd of readdirSync(`/proc/${pid}/fd`)) {
      const inode = socketInode(pid, fd);
      if (inode !== null && inodes.has(inode)) return true;
    }
  } catch {
    return false; // the process is gone, or another user's: either way nothing is proved
  }
  return false;
}

function socketInode(pid: number, fd: string): string | null {
  try {
    const match = /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/${pid}/fd/${fd}`));
    return match?.[1] ?? null;
  } catch {
    return null; // closed between the listing and the look
  }
}

/** Inodes of sockets in state LISTEN (0A) on the port, as seen from the process's network namespace. */
function listeningInodes(pid: number, port: number): Set<string> {
  const wanted = `:${port.toString(16).toUpperCase().padStart(4, "0")}`;
  const inodes = new Set<string>();
  for (const table of ["tcp", "tcp6"]) {
    let text: string;
    try {
      text = readFileSync(`/proc/${pid}/net/${table}`, "utf8");
    } catch {
      continue; // the process is gone, or the kernel has no IPv6
    }
    for (const line of text.split("\n")) {
      const fields = line.trim().split(/\s+/);
      if (fields[3] === "0A" && fields[1]?.endsWith(wanted) && fields[9] !== undefined) inodes.add(fields[9]);
    }
  }
  return inodes;
}

/**
 * All live processes that carry this launch id in their environment: the server and whatever it started. Costs a look
 * at each process of this user, so it is for clean-up and adoption, not for hot paths.
 */
export function processesOfLaunch(launchId: string): ProcessIdentity[] {
  const needle = Buffer.from(`${LAUNCH_VARIABLE}=${launchId}\0`);
  const found: ProcessIdentity[] = [];
  for (const { pid, environment } of environments()) {
    if (!environment.includes(needle)) continue;
    const identity = identify(pid);
    if (identity !== null) found.push(identity);
  }
  return found;
}

/** Every launch id that a live process of this user carries, with the processes that do. */
export function launchesByVariable(name: string, value: string): Map<string, ProcessIdentity[]> {
  const needle = Buffer.from(`${name}=${value}\0`);
  const launches = new Map<string, ProcessIdentity[]>();
  for (const { pid, environment } of environments()) {
    if (!environment.includes(needle)) continue;
    const variable = environment
      .toString("utf8")
      .split("\0")
      .find((entry) => entry.startsWith(`${LAUNCH_VARIABLE}=`));
    const identity = identify(pid);
    if (variable === undefined || identity === null) continue;
    const launchId = variable.slice(LAUNCH_VARIABLE.length + 1);
    launches.set(launchId, [...(launches.get(launchId) ?? []), identity]);
  }
  return launches;
}

function* environments(): Generator<{ pid: number; environment: Buffer }> {
  for (const entry of readdirSync("/proc")) {
    const pid = Number(entry);
    if (!Number.isInteger(pid) || pid === process.pid) continue;
    let environment: Buffer;
    try {
      environment = readFileSync(`/proc/${pid}/environ`);
    } catch {
      continue; // gone meanwhile, or another user's: not one of ours
    }
    yield { pid, environment };
  }
}

/** Private memory in bytes (`RssAnon`: what would come back if the process ended), or null when it is gone. */
export function privateMemoryBytes(pid: number): number | null {
  try {
    const match = /^RssAnon:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"));
    return match?.[1] === undefined ? null : Number(match[1]) * 1024;
  } catch {
    return null; // gone meanwhile
  }
}
