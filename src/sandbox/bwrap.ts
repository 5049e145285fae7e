import type { Protection } from "../model/sandbox.js";
import { system } from "../system/system.js";
import { ROOT_CAPABILITIES, run } from "./landlock.js";
import { mountCheck } from "./mounted.js";
import { mountOptions } from "./mounts.js";
import { contains, type Paths, TRIAL_PATHS } from "./paths.js";
import { machineProgram } from "./programs.js";
import type { Attempt, Command, Mechanism } from "./sandbox.js";

/*
 * bwrap gives a server namespaces of its own, and so a view of the machine that contains nothing of others. Our launcher then
 * restricts the server within them.
 *
 * A server has two PIDs: one outside, and one in its own PID namespace. The runtime names its locks by the inner one. There,
 * most PIDs would be 2, and the locks of several servers could not be told apart. So we choose the inner PID: it is the PID
 * that the process of bwrap has outside, which no other server has.
 */

const OUTSIDE = 'export COPILOTFLEET_SANDBOX_PID=$$; exec "$@"';
const LAST_PID = "/proc/sys/kernel/ns_last_pid";
/**
 * Process 1 of the namespace. It passes on how the runtime ended, and all other processes in the namespace end with it. A
 * shell reports on standard error that a signal ended a program; the log of the server is not the place for that.
 */
const INSIDE = `echo $((COPILOTFLEET_SANDBOX_PID - 1)) > ${LAST_PID} || exit 126
unset COPILOTFLEET_SANDBOX_PID
exec 3>&2 2>/dev/null
(exec "$@" 2>&3 3>&-)
exit $?`;

/**
 * Root gets no user namespace, because in it, root could not use files of other accounts. It keeps the capabilities that it
 * keeps under Landlock: those to work with its own files.
 */
const isRoot = process.getuid?.() === 0;
const KEPT = isRoot ? ROOT_CAPABILITIES : [];

/** Process 1 needs the first one to choose a PID. With the second one, the runtime can lose both. */
const OF_PROCESS_1 = ["checkpoint_restore", "setpcap"];
const CAPABILITIES = [...OF_PROCESS_1, ...KEPT].flatMap((name) => ["--cap-add", `CAP_${name.toUpperCase()}`]);
const FEWER_CAPABILITIES = [
  ...["--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all"],
  ...["--bounding-set", ["-all", ...KEPT.map((name) => `+${name}`)].join(",")],
];

const OPTIONS = [
  ...(isRoot ? [] : ["--unshare-user"]),
  ...["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--as-pid-1", "--cap-drop", "ALL", ...CAPABILITIES],
];

/** bwrap (bubblewrap), with our launcher inside. */
export async function tryBwrapAround(launcher: Attempt): Promise<Attempt> {
  return "wrap" in launcher ? await tryWith(launcher) : launcher;
}

export async function tryBwrapAlone(): Promise<Attempt> {
  return await tryWith(null);
}

async function tryWith(launcher: Mechanism | null): Promise<Attempt> {
  if (system().processes.innerPid(process.pid) === null)
    return { why: "bwrap cannot be used, because the system does not show the PID of a server inside it" };
  const programs = findPrograms();
  if (typeof programs === "string")
    return { why: `bwrap cannot be used, because no folder of the machine in PATH has the program ${programs}` };
  const [program, ...args] = within(launcher, programs, ["/bin/true"], TRIAL_PATHS);
  const { failure } = await run(program, args);
  if (failure !== null) return { why: `bwrap failed (${failure})` };
  return {
    mode: "bwrap",
    not: [...leftBy(launcher), "network", "resources"],
    wrap: (command, paths) => within(launcher, programs, command, paths),
  };
}

/** The paths of the programs that make the sandbox. */
type Programs = Readonly<Record<"bwrap" | "setpriv" | "stat", string>>;

/** Returns the name of a program that is missing. */
function findPrograms(): Programs | string {
  const [bwrap, setpriv, stat] = [machineProgram("bwrap"), machineProgram("setpriv"), machineProgram("stat")];
  if (bwrap === null) return "bwrap";
  if (setpriv === null) return "setpriv";
  return stat === null ? "stat" : { bwrap, setpriv, stat };
}

/**
 * The protections that only the launcher gives, as far as it does not give them. Abstract Unix sockets belong to the network,
 * which servers share with the machine. Landlock restricts them from the same version on as signals.
 */
function leftBy(launcher: Mechanism | null): Protection[] {
  if (launcher === null) return ["system-calls", "unix-sockets"];
  return [
    ...(launcher.not.includes("system-calls") ? (["system-calls"] as const) : []),
    ...(launcher.not.includes("signals") ? (["unix-sockets"] as const) : []),
  ];
}

function within(
  launcher: Mechanism | null,
  { bwrap, setpriv, stat }: Programs,
  command: Command,
  paths: Paths,
): Command {
  const inner = launcher?.wrap(command, paths) ?? command;
  return [
    ...(["/bin/sh", "-c", OUTSIDE, "sh", bwrap, ...OPTIONS] as const),
    ...mountOptions(launcher === null ? paths : { ...paths, read: [...paths.read.map(inFewMounts), inner[0]] }),
    // The settings of the kernel in /proc are files of root, who could write to them without any capability.
    ...["--bind", LAST_PID, LAST_PID, "--remount-ro", "/proc"],
    ...["--", "/bin/sh", "-c", `${mountCheck(paths, stat)}${INSIDE}`, "sh"],
    ...[setpriv, ...FEWER_CAPABILITIES, ...inner],
  ];
}

/** Each mount takes up to a millisecond, and half of the paths are in `/etc`. There, the launcher restricts the server. */
function inFewMounts(path: string): string {
  return contains("/etc", path) ? "/etc" : path;
}
