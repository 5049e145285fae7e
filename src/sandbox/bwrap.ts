import { closeSync, constants, fstatSync, openSync, readlinkSync } from "node:fs";
import { dirname, join, sep } from "node:path";
import { FleetError, quote, systemCode } from "../base/errors.js";
import type { Protection } from "../base/sandbox.js";
import { O_PATH, system } from "../base/system/system.js";
import { shellQuote } from "../base/values/text.js";
import { run } from "./landlock.js";
import { contains, type Paths, TRIAL_PATHS } from "./paths.js";
import { machineProgram, OF_THE_MACHINE } from "./programs.js";
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

/** The longest chain of links that the kernel follows: path_resolution(7). */
const MOST_LINKS = 40;

/** Links in /dev that programs expect, in addition to the devices. */
const BESIDE_DEVICES = ["/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr"];

/**
 * The bwrap options that build the file system of a sandbox. It starts empty, and everything in it has the same path as
 * outside. So if a path leads through a link, the sandbox needs that link, too.
 */
function mountOptions(paths: Paths): string[] {
  const mounts = mountsOf(paths);
  const places = ["/proc", ...mounts.keys()];
  const isMounted = (path: string) => places.some((place) => contains(place, path));
  const links = linksAlong([...paths.named, ...BESIDE_DEVICES]).filter(([link]) => !isMounted(link));
  // Mount the server's temporary folder at /tmp, because otherwise files in /tmp would use up memory. Do not do this if
  // something else is mounted below /tmp: bwrap would have to make that mount point in the temporary folder, where the
  // agent could have put links.
  const isTmpFree = ![...places, ...links.map(([link]) => link)].some((place) => contains("/tmp", place));
  return [
    ...[...mounts].flatMap(([path, option]) => [option, path, path]),
    ...links.flatMap(([link, target]) => ["--symlink", target, link]),
    ...(isTmpFree && paths.temporary !== null ? ["--bind", paths.temporary, "/tmp"] : []),
    ...["--proc", "/proc", "--remount-ro", "/"],
  ];
}

/** The mount option for each path. A folder comes before everything below it, because bwrap mounts in this order. */
function mountsOf({ read, write, devices }: Paths): Map<string, string> {
  const below = (path: string, folders: readonly string[]) =>
    folders.some((folder) => folder !== path && contains(folder, path));
  const options = new Map([
    ...read
      .filter((path) => !contains("/proc", path) && !below(path, [...read, ...write]))
      .map((path) => [path, "--ro-bind-try"] as const),
    // Leave out a path below another writable folder, because the mount of that folder includes the path.
    ...write.filter((path) => !below(path, write)).map((path) => [path, "--bind-try"] as const),
    ...devices.map((path) => [path, "--dev-bind-try"] as const),
  ]);
  return new Map([...options].sort(([a], [b]) => (a < b ? -1 : 1)));
}

/** Every link that the paths lead through, with its target. */
function linksAlong(paths: readonly string[]): [link: string, target: string][] {
  const links = new Map<string, string>();
  for (const path of paths) {
    let at = "/";
    const names = path.split(sep);
    for (let followed = 0; names.length > 0 && followed <= MOST_LINKS; ) {
      const next = join(at, names.shift() ?? "");
      const target = targetOf(next);
      if (target === null) {
        at = next;
        continue;
      }
      links.set(next, target);
      followed++;
      names.unshift(...target.split(sep));
      at = target.startsWith(sep) ? "/" : dirname(next);
    }
  }
  return [...links];
}

/** The target of a link. Null if there is no link at this path, or if this process cannot reach the path. */
function targetOf(path: string): string | null {
  try {
    return readlinkSync(path);
  } catch (error) {
    if (["EINVAL", "ENOENT", "ENOTDIR", "EACCES"].includes(systemCode(error) ?? "")) return null;
    throw error;
  }
}

/*
 * bwrap follows links when it mounts a folder. An agent may be able to change a parent of that folder, for example
 * because of the binds of an earlier configuration. The agent could then put a link there between the fleet's check and
 * the mount. So process 1 of the sandbox compares what bwrap mounted with what the fleet had checked.
 */

/**
 * Shell lines that exit with code 126 unless bwrap mounted exactly the files and folders that are at these paths now.
 * They do not check the machine's own folders, which only root can change.
 *
 * @param stat the path of the program `stat`
 * @throws FLEET_CONFIG_INVALID if a path now leads through a link
 */
function mountCheck({ read, write }: Paths, stat: string): string {
  const isOfMachine = (path: string) => path === "/" || OF_THE_MACHINE.some((folder) => contains(folder, path));
  const mounted = [...new Set([...read.filter((path) => !isOfMachine(path)), ...write])];
  if (mounted.length === 0) return "";
  const identities = mounted.map(identityOf).join("\n");
  return `[ "$(${shellQuote(stat)} -c '%d %i' -- ${mounted.map(shellQuote).join(" ")})" = '${identities}' ] || {
  echo "A folder of the sandbox was replaced while bwrap started." >&2
  exit 126
}
`;
}

/**
 * The device and inode numbers of a path. @throws FLEET_CONFIG_INVALID if the path is missing or leads through a link
 */
function identityOf(path: string): string {
  const descriptor = open(path);
  try {
    const stats = fstatSync(descriptor, { bigint: true });
    const isLink = (Number(stats.mode) & constants.S_IFMT) === constants.S_IFLNK;
    if (isLink || readlinkSync(system().files.pathOf(descriptor)) !== path) throw replaced(path);
    return identityText(stats);
  } finally {
    closeSync(descriptor);
  }
}

/** The device and inode numbers as stat(1) prints them: unsigned. Node.js reads them as signed numbers. */
export function identityText({ dev, ino }: { dev: bigint; ino: bigint }): string {
  return `${BigInt.asUintN(64, dev)} ${BigInt.asUintN(64, ino)}`;
}

function open(path: string): number {
  try {
    return openSync(path, O_PATH | constants.O_NOFOLLOW);
  } catch (error) {
    throw systemCode(error) === undefined ? error : replaced(path, error);
  }
}

function replaced(path: string, cause?: unknown): FleetError {
  const problem = `${quote(path)} was removed or replaced by a link after the fleet had checked it, perhaps by an agent.`;
  return new FleetError("FLEET_CONFIG_INVALID", problem, { cause, suggestions: [`ls -ld ${shellQuote(path)}`] });
}
