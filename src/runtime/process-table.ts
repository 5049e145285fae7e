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
import { FleetError, systemCode } from "../errors.js";
import type { ProcessIdentity } from "../store/store.js";

/**
 * What the operating system says of processes, read from `/proc` (proc(5)). Nothing here signals anything.
 * Every answer is a snapshot: prove an identity again right before acting on it.
 *
 * All of it throws FleetError `FLEET_PROCESSES_UNREADABLE` when this very process has no file descriptors or memory left
 * to look with: whoever cannot see a process must not take it for dead.
 */

/** The variable every server carries in its environment, naming the launch that made it. */
export const LAUNCH_VARIABLE = "COPILOTFLEET_LAUNCH_ID";

/** The variable by which the runtime names the session to tools and MCP servers (seen with 1.0.85 and 1.0.102). */
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
  /** As wait(2) reports it: the signal in the low seven bits, the exit code above them. 0 while the process runs. */
  waitStatus: number;
}

/** How a process ended: one of the two is null. */
export interface ProcessExit {
  signal: NodeJS.Signals | null;
  code: number | null;
}

/** What this process is out of when these come up; it says nothing of what was looked at. */
const OWN_LIMITS = new Set(["EMFILE", "ENFILE", "ENOMEM"]);

/** What is looked at, or null if it is not there, or is another user's. */
function seen<T>(look: () => T): T | null {
  try {
    return look();
  } catch (error) {
    const code = systemCode(error) ?? "";
    if (!OWN_LIMITS.has(code)) return null;
    const message = `The processes of this machine cannot be looked at: this one has reached a limit (${code}).`;
    throw new FleetError("FLEET_PROCESSES_UNREADABLE", message, { cause: error, suggestions: ["ulimit -n"] });
  }
}

/** `/proc/<pid>/stat`, or null when there is no such process. The name in it may hold spaces and brackets. */
function readStat(pid: number): Stat | null {
  const text = seen(() => readFileSync(`/proc/${pid}/stat`, "utf8"));
  if (text === null) return null; // gone, or never there: the same answer
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
 * The identity of a running process; null when it is gone or a zombie, which is as dead as gone. While a process with
 * several threads ends, its first one may be a zombie already and the others still hold its sockets: it is not dead yet.
 */
export function identify(pid: number): ProcessIdentity | null {
  const host = thisHost();
  const stat = readStat(pid);
  if (stat === null || ((stat.state === "Z" || stat.state === "X") && stat.threads <= 1)) return null;
  return { ...host, pid, startTicks: stat.startTicks };
}

/**
 * How a process ended that nobody has reaped: the kernel keeps its exit status until its parent asks for it. In a
 * container without an init process this can take for ever. Null once it is reaped, and while it runs.
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
 * another host or PID namespace cannot be seen from here: also no. The host's name says nothing: it may change while
 * its processes run, and two kernels never have one boot id.
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

/** Whether `pid` itself holds the socket that listens on the port: the proof before a token is sent there. */
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

/** Inodes of all sockets of a process; none when it is gone or another user's, of which nothing can be proved. */
function socketInodes(pid: number): Set<string> {
  const inodes = new Set<string>();
  for (const fd of openFiles(pid)) {
    // Closed between the listing and the look: not listening either.
    const target = seen(() => readlinkSync(`/proc/${pid}/fd/${fd}`)) ?? "";
    const inode = /^socket:\[(\d+)\]$/.exec(target)?.[1];
    if (inode !== undefined) inodes.add(inode);
  }
  return inodes;
}

/** Bytes of one line of the kernel's table of TCP sockets (`tcp4_seq_show` pads each to 149 and a newline). */
const SOCKET_LINE_BYTES = 150;

/**
 * The listening sockets (state 0A) of a network namespace. The kernel lists them before all others, and walks its
 * whole table of connections, which takes milliseconds, as soon as it is asked for more than there are: so it is asked
 * line by line, for as long as the caller wants more.
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
 * Which of the listening ports have clients connected, but for those whose own end is one of `except`. Reads the kernel's
 * whole table, which takes milliseconds.
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

/** A live process of a launch. */
export interface LaunchedProcess {
  identity: ProcessIdentity;
  /** The session that it or the process that started it names; null when neither names one. */
  sessionId: string | null;
}

/**
 * The live processes of every launch whose processes carry the variable with this value: those that carry it, and their
 * descendants that do not.
 */
export function processesByLaunch(name: string, value: string): Map<string, LaunchedProcess[]> {
  const known = new Map<number, { parent: number; variables: Map<string, string> }>();
  for (const pid of pids()) {
    const stat = readStat(pid);
    if (stat === null) continue;
    const text = seen(() => readFileSync(`/proc/${pid}/environ`, "utf8")) ?? ""; // gone, or another user's
    const wanted = text.split("\0").filter((entry) => /^(COPILOTFLEET_|COPILOT_AGENT_SESSION_ID=)/.test(entry));
    const variables = new Map(wanted.map((entry) => splitAt(entry, entry.indexOf("="))));
    known.set(pid, { parent: stat.parent, variables });
  }
  const launches = new Map<string, LaunchedProcess[]>();
  for (const pid of known.keys()) {
    let launch: Map<string, string> | undefined;
    let sessionId: string | undefined;
    // A parent may end and its PID be reused while the table is read: the number of steps is bounded by that of processes.
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
 * All live processes of the session that a live process leads, itself among them. Its PID names the session for as long
 * as it lives; of a dead leader's nothing can be said.
 */
export function processesOfSession(leader: ProcessIdentity): ProcessIdentity[] {
  const members = pids().flatMap((pid) => (readStat(pid)?.session === leader.pid ? (identify(pid) ?? []) : []));
  return isAlive(leader) ? members : [];
}

/**
 * All live processes that have the file open for writing. A server has its log so, and a child that is forked to become
 * one has it already, while between fork and exec its environment still is its parent's.
 */
export function writersOf(path: string): ProcessIdentity[] {
  if (!existsSync(path)) return [];
  const real = realpathSync(path);
  return pids().flatMap((pid) => (openFiles(pid).some((fd) => writes(pid, fd, real)) ? (identify(pid) ?? []) : []));
}

/** Numbers of the open files of a process; none when it is gone or another user's. */
function openFiles(pid: number): string[] {
  return seen(() => readdirSync(`/proc/${pid}/fd`)) ?? [];
}

function writes(pid: number, fd: string, path: string): boolean {
  if (seen(() => readlinkSync(`/proc/${pid}/fd/${fd}`)) !== path) return false;
  const info = seen(() => readFileSync(`/proc/${pid}/fdinfo/${fd}`, "utf8")) ?? ""; // closed meanwhile
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
    if (environment !== null) yield { pid, environment }; // gone meanwhile, or another user's: not one of ours
  }
}

/** Private memory in bytes (`RssAnon`: what would come back if the process ended), or null when it is gone. */
export function privateMemoryBytes(pid: number): number | null {
  const status = seen(() => readFileSync(`/proc/${pid}/status`, "utf8")) ?? "";
  const kilobytes = /^RssAnon:\s+(\d+) kB$/m.exec(status)?.[1];
  return kilobytes === undefined ? null : Number(kilobytes) * 1024;
}
