import type { Protection } from "../model/sandbox.js";
import { system } from "../system/system.js";
import { run } from "./landlock.js";
import { mountCheck } from "./mounted.js";
import { mountOptions } from "./mounts.js";
import { contains, type Paths, TRIAL_PATHS } from "./paths.js";
import { machineProgram } from "./programs.js";
import type { Attempt, Command, Mechanism } from "./sandbox.js";

/*
 * bwrap gives a server its own namespaces, so that the server sees nothing of other users and their processes. Inside
 * these namespaces, our launcher restricts the server further.
 *
 * A server has two PIDs: one outside, and one in its own PID namespace. The runtime names its locks after the inner
 * PID. Without our choice, this PID would be 2 in most servers, so the locks of several servers could not be told
 * apart. So we set the inner PID to the PID that the bwrap process has outside, because no other server has that PID.
 */

const OUTSIDE = 'export COPILOTFLEET_SANDBOX_PID=$$; exec "$@"';
const LAST_PID = "/proc/sys/kernel/ns_last_pid";
/**
 * The script that the shell runs as process 1 of the PID namespace. It exits with the runtime's exit code, and then the
 * kernel ends all other processes in the namespace. It discards the shell's own messages, because a shell prints one
 * when a signal ends a program, and this message does not belong in the server's log.
 */
const INSIDE = `echo $((COPILOTFLEET_SANDBOX_PID - 1)) > ${LAST_PID} || exit 126
unset COPILOTFLEET_SANDBOX_PID
exec 3>&2 2>/dev/null
(exec "$@" 2>&3 3>&-)
exit $?`;

/**
 * If the fleet runs as root, a server gets no user namespace, because inside one, root could not use the files of other
 * accounts. The server keeps the capabilities that root needs to work with files. The launcher keeps the same ones.
 */
const isRoot = process.getuid?.() === 0;
const KEPT = isRoot ? ["chown", "dac_override", "fowner", "fsetid"] : [];

/**
 * Process 1 needs `checkpoint_restore` to choose a PID. `setpcap` lets setpriv remove both capabilities before the
 * runtime starts.
 */
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

/** Tries bwrap (bubblewrap) with our launcher inside. If the launcher does not work, returns the reason for that. */
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

/** Finds these programs. If one is missing, returns its name. */
function findPrograms(): Programs | string {
  const [bwrap, setpriv, stat] = [machineProgram("bwrap"), machineProgram("setpriv"), machineProgram("stat")];
  if (bwrap === null) return "bwrap";
  if (setpriv === null) return "setpriv";
  return stat === null ? "stat" : { bwrap, setpriv, stat };
}

/**
 * The protections that only the launcher can give, and that are missing here. bwrap cannot give `unix-sockets`, because
 * abstract Unix sockets belong to the network, which servers share with the machine. Landlock restricts these sockets
 * from the same version on as signals, so a launcher that lacks `signals` lacks `unix-sockets`, too.
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
  // The program sees only files and sockets that it may use.
  const inner = launcher?.wrap(command, paths, ["--allow", "sockets", "--allow", "owners"]) ?? command;
  return [
    ...(["/bin/sh", "-c", OUTSIDE, "sh", bwrap, ...OPTIONS] as const),
    ...mountOptions(launcher === null ? paths : { ...paths, read: [...paths.read.map(inFewMounts), inner[0]] }),
    // Root owns the kernel's settings in /proc and could write to them without any capability. So /proc becomes
    // read-only, except for the file that process 1 writes to.
    ...["--bind", LAST_PID, LAST_PID, "--remount-ro", "/proc"],
    ...["--", "/bin/sh", "-c", `${mountCheck(paths, stat)}${INSIDE}`, "sh"],
    ...[setpriv, ...FEWER_CAPABILITIES, ...inner],
  ];
}

/**
 * Replaces each path in `/etc` with `/etc`, because a mount takes up to a millisecond and half of the paths are in
 * `/etc`. The launcher still restricts the server to the individual paths.
 */
function inFewMounts(path: string): string {
  return contains("/etc", path) ? "/etc" : path;
}
