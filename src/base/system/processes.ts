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
  statSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { constants as osConstants } from "node:os";
import { controlGroupsOf } from "./file-systems.js";
import { seen } from "./own-limits.js";
import type { ProcessExit, ProcessVariables, SeenProcess } from "./system.js";

/**
 * The processes that the kernel knows, from `/proc` (proc(5)). Every answer is a snapshot: look again right before you
 * act on it. Zombies count as gone. Lists leave out this process, and processes of other users about which the kernel
 * does not answer.
 *
 * Every function throws FleetError `FLEET_FILES_EXHAUSTED` when it cannot look, because a process that we cannot look
 * at must not count as dead.
 */
export const linuxProcesses = {
  /** The PID namespace of this process. Within a namespace, no two processes have the same PID at the same time. */
  namespace: () => (namespace ??= readlinkSync("/proc/self/ns/pid")),
  find: (pid: number) => alive(readStat(pid)),
  innerPid,
  exitOfZombie,
  inSession,
  withVariable,
  withEnvironment,
  withLockLimit,
  endFirst,
  hideVariables,
  inheritedDescriptors,
  allowsNamespaces,
  writersOf,
  listensOn,
  connectedPorts,
  privateMemoryBytes,
  /** The control groups that a process is in, one for each hierarchy. Without `pid`: the groups of this process. */
  controlGroups: (pid?: number) => seen(() => controlGroupsOf(pid ?? "self")) ?? [],
};

let namespace: string | undefined;

interface Stat extends SeenProcess {
  state: string;
  session: number;
  threads: number;
  /** As in wait(2): the signal in the low seven bits, the exit code from bit 8 on. 0 while the process runs. */
  waitStatus: number;
  /** The address of the environment in the memory of the process. 0 if the kernel does not show it. */
  environmentAt: number;
}

/**
 * Reads `/proc/<pid>/stat`. Null if the process does not exist. The program's name in the file may contain spaces and
 * parentheses.
 */
function readStat(pid: number): Stat | null {
  const text = seen(() => readFileSync(`/proc/${pid}/stat`, "utf8"));
  if (text === null) return null;
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return {
    pid,
    state: fields[0] ?? "X",
    parent: Number(fields[1]),
    session: Number(fields[3]),
    threads: Number(fields[17]),
    started: fields[19] ?? "",
    waitStatus: Number(fields[49] ?? 0),
    environmentAt: Number(fields[47] ?? 0),
  };
}

/**
 * The process if it is alive. Null for a zombie. When a process with several threads ends, its first thread may be a
 * zombie while other threads still hold its sockets. Such a process counts as alive.
 */
function alive(stat: Stat | null): SeenProcess | null {
  if (stat === null || ((stat.state === "Z" || stat.state === "X") && stat.threads <= 1)) return null;
  return { pid: stat.pid, parent: stat.parent, started: stat.started };
}

/** The members of the process session with this leader. */
function inSession(leader: number): SeenProcess[] {
  return others().flatMap((pid) => {
    const stat = readStat(pid);
    return stat?.session === leader ? (alive(stat) ?? []) : [];
  });
}

/**
 * How a zombie ended. A zombie is a dead process whose parent has not asked for its exit status so far. With `then`,
 * the zombie must have started exactly at `started`; with `then or before`, at that time or earlier. Null for any
 * other process.
 */
function exitOfZombie(pid: number, started: string, when: "then" | "then or before" = "then"): ProcessExit | null {
  const stat = readStat(pid);
  if (stat === null || stat.state !== "Z") return null;
  if (stat.started !== started && !(when === "then or before" && Number(stat.started) < Number(started))) return null;
  const number = stat.waitStatus & 0x7f;
  if (number === 0) return { signal: null, code: stat.waitStatus >> 8 };
  const names = Object.entries(osConstants.signals) as [NodeJS.Signals, number][];
  const signal = names.find(([, value]) => value === number)?.[0];
  return signal === undefined ? null : { signal, code: null };
}

/**
 * The content of a file of the kernel. Empty if its process is gone or belongs to another user, or if it is missing.
 */
function textOf(path: string): string {
  return seen(() => readFileSync(path, "utf8")) ?? "";
}

/** The PIDs of all other processes, including processes that we may not look at. */
function others(): number[] {
  return (seen(() => readdirSync("/proc")) ?? [])
    .map(Number)
    .filter((pid) => Number.isInteger(pid) && pid !== process.pid);
}

function withVariable(name: string, value: string): SeenProcess[] {
  const needle = Buffer.from(`\0${name}=${value}\0`);
  const has = (pid: number) => {
    const environment = seen(() => readFileSync(`/proc/${pid}/environ`)); // null: it ended, or is another user's process
    return environment !== null && (environment.includes(needle) || environment.indexOf(needle.subarray(1)) === 0);
  };
  return othersWith(has);
}

function othersWith(has: (pid: number) => boolean): SeenProcess[] {
  return others().flatMap((pid) => {
    if (!has(pid)) return [];
    const found = linuxProcesses.find(pid);
    // Look again, because the PID may have passed to another process between the two reads.
    return found !== null && has(pid) ? found : [];
  });
}

/** All processes, each with the named variables that are in its environment. Another user's process may show none. */
function withEnvironment(names: readonly string[]): ProcessVariables[] {
  return others().flatMap((pid) => {
    const found = linuxProcesses.find(pid);
    if (found === null) return [];
    const entries = textOf(`/proc/${pid}/environ`).split("\0");
    const variables: Record<string, string> = {};
    for (const name of names) {
      const entry = entries.find((text) => text.startsWith(`${name}=`));
      if (entry !== undefined) variables[name] = entry.slice(name.length + 1);
    }
    return { ...found, variables };
  });
}

/** The processes of this account with this soft limit on file locks. */
function withLockLimit(limit: number): SeenProcess[] {
  const line = new RegExp(`^Max file locks\\s+${limit}\\s`, "m");
  return othersWith(
    (pid) =>
      seen(() => statSync(`/proc/${pid}`).uid) === process.getuid?.() && line.test(textOf(`/proc/${pid}/limits`)),
  );
}

/**
 * Makes the kernel prefer a process, with all that it starts from then on, when it has to end one because the memory is
 * used up. A process may always raise this value, and only root may lower it.
 */
function endFirst(pid: number): void {
  const path = `/proc/${pid}/oom_score_adj`;
  try {
    if (Number(readFileSync(path, "utf8")) < SERVER_OOM_SCORE) writeFileSync(path, String(SERVER_OOM_SCORE));
  } catch {
    // The process is gone, or this process has no descriptor left. The server works without the value.
  }
}

/** As if the process used half of the memory of the machine in addition to its own. */
const SERVER_OOM_SCORE = 500;

/**
 * Overwrites variables in the environment that the kernel shows of a process, after the process has read them. Does
 * nothing for a process that is gone. Returns whether the kernel no longer shows the variables.
 *
 * `/proc/<pid>/environ` shows the bytes with which the program started, from the memory of the process. So only this
 * memory has to change. A program that has copied a value keeps it.
 */
function hideVariables(pid: number, names: readonly string[]): boolean {
  const { environmentAt = 0 } = readStat(pid) ?? {};
  const environment = seen(() => readFileSync(`/proc/${pid}/environ`));
  if (environmentAt === 0 || environment === null) return readStat(pid) === null;
  return (
    seen(() => {
      const memory = openSync(`/proc/${pid}/mem`, constants.O_WRONLY);
      try {
        for (let at = 0; at < environment.length; ) {
          const end = environment.indexOf(0, at);
          const entry = environment.subarray(at, end < 0 ? undefined : end);
          if (names.some((name) => entry.indexOf(`${name}=`) === 0))
            writeSync(memory, Buffer.alloc(entry.length), 0, entry.length, environmentAt + at);
          at += entry.length + 1;
        }
        return true;
      } finally {
        closeSync(memory);
      }
    }) ?? readStat(pid) === null
  );
}

/** The processes that have the file open for writing. */
function writersOf(path: string): SeenProcess[] {
  if (!existsSync(path)) return [];
  const real = realpathSync(path);
  return others().flatMap((pid) =>
    openFiles(pid).some((fd) => writes(pid, fd, real)) ? (linuxProcesses.find(pid) ?? []) : [],
  );
}

function writes(pid: number, fd: string, path: string): boolean {
  if (seen(() => readlinkSync(`/proc/${pid}/fd/${fd}`)) !== path) return false;
  return ((flagsOf(pid, fd) ?? 0) & (constants.O_WRONLY | constants.O_RDWR)) !== 0;
}

/** The flags of an open descriptor, as in open(2). Null if it was just closed. */
function flagsOf(pid: number, fd: string): number | null {
  const flags = /^flags:\s+(\d+)$/m.exec(textOf(`/proc/${pid}/fdinfo/${fd}`))?.[1];
  return flags === undefined ? null : Number.parseInt(flags, 8);
}

/**
 * Whether each kind of namespace may be made. If not, the kernel's error is the same as when there are too many. A
 * kernel without a limit on a kind has no file for it.
 */
function allowsNamespaces(): boolean {
  const kinds = ["user", "pid", "mnt", "ipc", "uts", "net"];
  return kinds.every((kind) => Number(textOf(`/proc/sys/user/max_${kind}_namespaces`) || 1) > 0);
}

const O_CLOEXEC = 0o2000000;

/**
 * The descriptors beyond standard error that a child of this process would inherit. Node.js does not let children
 * inherit its own descriptors, so the program that started this process left these open. Leaves out those above the
 * limit of open files, because no process can use their numbers.
 */
function inheritedDescriptors(): number[] {
  const limit = Number(/^Max open files\s+(\d+)/m.exec(textOf("/proc/self/limits"))?.[1] ?? Number.POSITIVE_INFINITY);
  const passedOn = (fd: string) => ((flagsOf(process.pid, fd) ?? O_CLOEXEC) & O_CLOEXEC) === 0;
  return openFiles(process.pid)
    .filter((fd) => Number(fd) > 2 && Number(fd) < limit && passedOn(fd))
    .map(Number);
}

/**
 * The PID of the process in its own PID namespace, or null if it is gone: the last value of `NSpid`, which has the PID
 * in each namespace from ours to that of the process.
 */
function innerPid(pid: number): number | null {
  return statusOf(pid, /^NSpid:.*\s(\d+)$/m);
}

/** How many bytes of memory the end of the process would free. Null when it is gone. */
function privateMemoryBytes(pid: number): number | null {
  const kilobytes = statusOf(pid, /^RssAnon:\s+(\d+) kB$/m);
  return kilobytes === null ? null : kilobytes * 1024;
}

function statusOf(pid: number, line: RegExp): number | null {
  const value = line.exec(textOf(`/proc/${pid}/status`))?.[1];
  return value === undefined ? null : Number(value);
}

/**
 * Whether the process itself has a TCP socket that listens on the port. Looks in the network namespace of the process
 * `seenFrom`. Default: the process itself.
 */
function listensOn(pid: number, port: number, seenFrom = pid): boolean {
  return ["tcp", "tcp6"].some((table) => {
    // Stop at the first match, because the kernel needs milliseconds to get past the last listening socket.
    for (const listener of listeners(`/proc/${seenFrom}/net/${table}`))
      if (listener.port === port && holdsSocket(pid, listener.inode)) return true;
    return false;
  });
}

/**
 * Whether a process has the socket open. Stops at the first match: a server opens its listening socket early, so its
 * descriptors for clients come later. False if the process is gone or belongs to another user.
 */
function holdsSocket(pid: number, inode: string): boolean {
  return openFiles(pid).some((fd) => seen(() => readlinkSync(`/proc/${pid}/fd/${fd}`)) === `socket:[${inode}]`);
}

/** The numbers of a process's open descriptors, as text. Empty if the process is gone or belongs to another user. */
function openFiles(pid: number): string[] {
  return seen(() => readdirSync(`/proc/${pid}/fd`)) ?? [];
}

const LISTENING = "0A";
const ESTABLISHED = "01";

/** The length of a line in the kernel's table of sockets: `tcp4_seq_show` pads each to 149 bytes and adds a newline. */
const SOCKET_LINE_BYTES = 150;

/**
 * The listening sockets of a network namespace. The kernel lists them first. We read line by line and stop after them,
 * because the kernel needs milliseconds for the other sockets.
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
        if (!heading && state !== LISTENING) return;
        if (!heading) yield { port: portOf(local), inode };
        heading = false;
      }
    }
  } finally {
    closeSync(fd);
  }
}

/**
 * Returns those of `ports` to which a client is connected. Ignores clients whose own port is in `except`. Reads the
 * kernel's whole table of sockets, which takes milliseconds.
 */
function connectedPorts(ports: ReadonlySet<number>, except: ReadonlySet<number>): Set<number> {
  const found = new Set<number>();
  for (const table of ["tcp", "tcp6"]) {
    // The table is missing if the kernel has no IPv6.
    for (const line of textOf(`/proc/self/net/${table}`).split("\n").slice(1)) {
      const [, local = "", remote = "", state] = line.trim().split(/\s+/);
      const port = portOf(local);
      if (state === ESTABLISHED && ports.has(port) && !except.has(portOf(remote))) found.add(port);
    }
  }
  return found;
}

function portOf(address: string): number {
  return Number.parseInt(address.slice(address.lastIndexOf(":") + 1), 16);
}
