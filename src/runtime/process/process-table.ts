import {
  closeSync,
  constants,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  readSync,
  realpathSync,
} from "node:fs";
import { hostname, constants as osConstants } from "node:os";
import { FleetError, systemCode } from "../../errors.js";
import type { ProcessIdentity } from "../../model/process.js";

/**
 * This file reads what the operating system knows about processes from `/proc` (proc(5)). It sends no signals. Every answer
 * is a snapshot: check an identity again right before you act on it.
 *
 * Every function throws FleetError `FLEET_PROCESSES_UNREADABLE` when this process has no file descriptors or memory left,
 * because a process that we cannot look at must not count as dead.
 */

/** Every server has this variable in its environment. It names the launch that started the server. */
export const LAUNCH_VARIABLE = "COPILOTFLEET_LAUNCH_ID";

/** The variable in which the runtime gives tools and MCP servers the session's id (seen with 1.0.85 and 1.0.102). */
const SESSION_VARIABLE = "COPILOT_AGENT_SESSION_ID";

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

/** Errors that mean that this process has reached a limit. They reveal nothing about the process that we look at. */
const OWN_LIMITS = new Set(["EMFILE", "ENFILE", "ENOMEM"]);

/** Returns the result of `look`, or null if its target does not exist or belongs to another user. */
function seen<T>(look: () => T): T | null {
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
function readStat(pid: number): Stat | null {
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
 * The identity of a running process. Null when the process is gone or a zombie. When a process with several threads ends,
 * its first thread may already be a zombie while the others still hold its sockets. Such a process is not dead yet.
 */
export function identify(pid: number): ProcessIdentity | null {
  const host = thisHost();
  const stat = readStat(pid);
  if (stat === null || ((stat.state === "Z" || stat.state === "X") && stat.threads <= 1)) return null;
  return { ...host, pid, startTicks: stat.startTicks };
}

/**
 * How a process ended that nobody has reaped. The kernel keeps the exit status until the parent asks for it. In a container
 * without an init process, that may never happen. Null while the process runs, and once it is reaped.
 */
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

/** The identity of this process. */
export function ownIdentity(): ProcessIdentity {
  if (self === undefined) {
    const found = identify(process.pid);
    if (found === null) throw new FleetError("FLEET_INTERNAL", "/proc does not show this process.");
    self = found;
  }
  return self;
}

/**
 * Whether exactly this process is still running. False for a reused PID, after a reboot (which changes the boot id), and for
 * a zombie. Also false for a process of another host or PID namespace, because we cannot see it from here. The host name is
 * not compared, because it may change while processes run, and two kernels never have the same boot id.
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

/** Whether `pid` itself holds the socket that listens on the port. Check this before you send a token there. */
export function ownsListener(pid: number, port: number): boolean {
  const own = socketInodes(pid);
  if (own.size === 0) return false;
  for (const table of ["tcp", "tcp6"]) {
    for (const listener of listeners(`/proc/${pid}/net/${table}`)) {
      if (listener.port === port && own.has(listener.inode)) return true;
    }
  }
  return false;
}

/** Inodes of all sockets of a process. Empty when it is gone or another user's, because then we can prove nothing. */
function socketInodes(pid: number): Set<string> {
  const inodes = new Set<string>();
  for (const fd of openFiles(pid)) {
    // If the file was closed after we listed it, it does not listen either.
    const target = seen(() => readlinkSync(`/proc/${pid}/fd/${fd}`)) ?? "";
    const inode = /^socket:\[(\d+)\]$/.exec(target)?.[1];
    if (inode !== undefined) inodes.add(inode);
  }
  return inodes;
}

/** Bytes in one line of the kernel's table of TCP sockets: `tcp4_seq_show` pads each to 149 and adds a newline. */
const SOCKET_LINE_BYTES = 150;

/**
 * Yields the listening sockets (state 0A) of a network namespace. The kernel lists them before all other sockets. If we ask
 * for more lines than there are listening sockets, it walks its whole table of connections, which takes milliseconds. So we
 * read line by line, and only as long as the caller wants more.
 */
function* listeners(table: string): Generator<{ port: number; inode: string }> {
  const fd = seen(() => openSync(table, "r"));
  if (fd === null) return; // the process is gone, or the kernel has no IPv6
  try {
    const chunk = Buffer.alloc(SOCKET_LINE_BYTES);
    let text = "";
    for (let heading = true; ; ) {
      const bytes = readSync(fd, chunk);
      if (bytes === 0) return;
      text += chunk.toString("latin1", 0, bytes);
      for (let end = text.indexOf("\n"); end !== -1; end = text.indexOf("\n")) {
        const [, local = "", , state, , , , , , inode = ""] = text.slice(0, end).trim().split(/\s+/);
        text = text.slice(end + 1);
        if (!heading && state !== "0A") return;
        if (!heading) yield { port: portOf(local), inode };
        heading = false;
      }
    }
  } finally {
    closeSync(fd);
  }
}

/**
 * Returns those of the listening ports that have clients connected. Ignores clients whose own port is in `except`. Reads
 * the kernel's whole table, which takes milliseconds.
 */
export function connectionsTo(ports: ReadonlySet<number>, except: ReadonlySet<number>): Set<number> {
  const found = new Set<number>();
  for (const table of ["tcp", "tcp6"]) {
    for (const line of linesOf(`/proc/self/net/${table}`)) {
      const [, local = "", remote = "", state] = line.trim().split(/\s+/);
      const port = portOf(local);
      if (state === ESTABLISHED && ports.has(port) && !except.has(portOf(remote))) found.add(port);
    }
  }
  return found;
}

const ESTABLISHED = "01";

function portOf(address: string): number {
  return Number.parseInt(address.slice(address.lastIndexOf(":") + 1), 16);
}

function linesOf(path: string): string[] {
  const text = seen(() => readFileSync(path, "utf8")) ?? ""; // the kernel may have no IPv6
  return text.split("\n").slice(1);
}

/**
 * All live processes that have this launch id in their environment: the server and everything that it started. It looks at
 * every process of this user, so use it for clean-up and adoption, not for hot paths.
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

/** The live processes that have both this variable and a launch id in their environment, by launch id. */
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

/** A live process of a launch. */
export interface LaunchedProcess {
  identity: ProcessIdentity;
  /** The session that the process or its nearest ancestor names in its environment. Null when none of them does. */
  sessionId: string | null;
}

/**
 * Returns live processes by launch id: those that have the variable with this value in their environment, and those of
 * their descendants that do not have it.
 */
export function processesByLaunch(name: string, value: string): Map<string, LaunchedProcess[]> {
  const known = new Map<number, { parent: number; variables: Map<string, string> }>();
  for (const pid of pids()) {
    const stat = readStat(pid);
    if (stat === null) continue;
    const text = seen(() => readFileSync(`/proc/${pid}/environ`, "utf8")) ?? ""; // it is gone, or another user's
    const wanted = text.split("\0").filter((entry) => /^(COPILOTFLEET_|COPILOT_AGENT_SESSION_ID=)/.test(entry));
    const variables = new Map(wanted.map((entry) => splitAt(entry, entry.indexOf("="))));
    known.set(pid, { parent: stat.parent, variables });
  }
  const launches = new Map<string, LaunchedProcess[]>();
  for (const pid of known.keys()) {
    let launch: Map<string, string> | undefined;
    let sessionId: string | undefined;
    // A parent may end, and its PID may be reused, while we read the table. So the number of steps has a limit.
    for (
      let at = known.get(pid), steps = 0;
      at !== undefined && steps <= known.size;
      at = known.get(at.parent), steps++
    ) {
      sessionId ??= at.variables.get(SESSION_VARIABLE);
      if (!at.variables.has(LAUNCH_VARIABLE)) continue;
      launch ??= at.variables;
      if (sessionId !== undefined || at.variables.get(LAUNCH_VARIABLE) !== launch.get(LAUNCH_VARIABLE)) break;
    }
    const launchId = launch?.get(LAUNCH_VARIABLE);
    if (launchId === undefined || launch?.get(name) !== value) continue;
    const identity = identify(pid);
    if (identity === null) continue;
    launches.set(launchId, [...(launches.get(launchId) ?? []), { identity, sessionId: sessionId ?? null }]);
  }
  return launches;
}

function splitAt(text: string, at: number): [string, string] {
  return [text.slice(0, at), text.slice(at + 1)];
}

/**
 * All live processes of the session that a live process leads, including the leader. Empty when the leader is dead, because
 * its PID then no longer identifies the session.
 */
export function processesOfSession(leader: ProcessIdentity): ProcessIdentity[] {
  const members = pids().flatMap((pid) => (readStat(pid)?.session === leader.pid ? (identify(pid) ?? []) : []));
  return isAlive(leader) ? members : [];
}

/**
 * All live processes that have the file open for writing. A server has its log open like this. So does a child that was
 * forked to become a server, even between fork and exec, when its environment is still that of its parent.
 */
export function writersOf(path: string): ProcessIdentity[] {
  if (!existsSync(path)) return [];
  const real = realpathSync(path);
  return pids().flatMap((pid) => (openFiles(pid).some((fd) => writes(pid, fd, real)) ? (identify(pid) ?? []) : []));
}

/** Numbers of the open files of a process. Empty when it is gone or another user's. */
function openFiles(pid: number): string[] {
  return seen(() => readdirSync(`/proc/${pid}/fd`)) ?? [];
}

function writes(pid: number, fd: string, path: string): boolean {
  if (seen(() => readlinkSync(`/proc/${pid}/fd/${fd}`)) !== path) return false;
  const info = seen(() => readFileSync(`/proc/${pid}/fdinfo/${fd}`, "utf8")) ?? ""; // it was just closed
  const flags = /^flags:\s+(\d+)$/m.exec(info)?.[1] ?? "0";
  return (Number.parseInt(flags, 8) & (constants.O_WRONLY | constants.O_RDWR)) !== 0;
}

function pids(): number[] {
  return (seen(() => readdirSync("/proc")) ?? [])
    .map(Number)
    .filter((pid) => Number.isInteger(pid) && pid !== process.pid);
}

function* environments(): Generator<{ pid: number; environment: Buffer }> {
  for (const pid of pids()) {
    const environment = seen(() => readFileSync(`/proc/${pid}/environ`));
    if (environment !== null) yield { pid, environment }; // null: it is gone, or another user's
  }
}

/** Private memory in bytes (`RssAnon`, which is freed when the process ends). Null when the process is gone. */
export function privateMemoryBytes(pid: number): number | null {
  const status = seen(() => readFileSync(`/proc/${pid}/status`, "utf8")) ?? "";
  const kilobytes = /^RssAnon:\s+(\d+) kB$/m.exec(status)?.[1];
  return kilobytes === undefined ? null : Number(kilobytes) * 1024;
}
