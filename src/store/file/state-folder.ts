import {
  chmodSync,
  lstatSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  type Stats,
  writeFileSync,
} from "node:fs";
import { dirname, isAbsolute, join } from "node:path";
import { FleetError, quote, type Suggestion, systemCode } from "../../base/errors.js";
import { system, type UnfitFileSystem } from "../../base/system/system.js";
import { shellQuote } from "../../base/values/text.js";
import { makeFolder, scratchName } from "./durable.js";
import { mediumError, readIfThere } from "./failures.js";

const ALLOW_NETWORK = "COPILOTFLEET_ALLOW_NETWORK_FS";
const ALLOW_PARENTS = "COPILOTFLEET_ALLOW_UNSAFE_PARENTS";
/** The kernel follows at most this many links in one path (path_resolution(7)). */
const MOST_LINKS = 40;

export interface StateFolderOptions {
  /** Replaced in tests. */
  files?: Pick<ReturnType<typeof system>["files"], "unfit">;
  env?: NodeJS.ProcessEnv;
}

/**
 * Refuses a state folder that would let another user read, plant or change state, even by replacing a folder above it.
 * The state folder need not exist.
 *
 * @throws FleetError `FLEET_STATE_UNSAFE`.
 */
export function checkStateFolder(path: string, options: StateFolderOptions = {}): void {
  const stats = lstatIfThere(path, path);
  if (stats !== undefined) checkFolder(path, stats);
  const parent = checkParents(path, options);
  refuseFileSystem(path, stats === undefined ? parent : path, options);
}

/** How long a check of the folders above the state folder stays valid, in milliseconds. */
const PARENTS_VALID_MS = 1_000;

/**
 * Like {@link checkStateFolder}, but checks the folders above the state folder at most once a second. That is safe,
 * because once a check has passed, only root and we can change these folders.
 */
export function stateFolderCheck(path: string): () => void {
  let checkedAt = Number.NEGATIVE_INFINITY;
  return () => {
    const stats = lstatIfThere(path, path);
    if (stats !== undefined && performance.now() - checkedAt < PARENTS_VALID_MS) return checkFolder(path, stats);
    checkStateFolder(path);
    if (stats !== undefined) checkedAt = performance.now();
  };
}

function checkFolder(path: string, stats: Stats): void {
  if (stats.isSymbolicLink()) {
    throw unsafe(path, "is a symbolic link, which its owner can point elsewhere", [
      `export COPILOTFLEET_HOME="$(realpath ${shellQuote(path)})"`,
    ]);
  }
  if (!stats.isDirectory()) throw unsafe(path, "is not a folder", ["Set COPILOTFLEET_HOME to a folder."]);
  const uid = process.getuid?.();
  if (uid !== undefined && stats.uid !== uid) {
    throw unsafe(path, `belongs to uid ${stats.uid}, and this process runs as uid ${uid}`, adviceForOwner(path, stats));
  }
  if ((stats.mode & 0o022) !== 0) {
    throw unsafe(path, `can be written by others (mode ${modeOf(stats)})`, [`chmod go-w ${shellQuote(path)}`]);
  }
}

/** The next steps of somebody who is not the owner of the state folder. */
export function adviceForOwner(path: string, { uid }: Pick<Stats, "uid">): Suggestion[] {
  const name = entriesOf("/etc/passwd").find(([, , id]) => id === String(uid))?.[0] ?? `#${uid}`;
  return [
    `sudo -u ${shellQuote(name)} env COPILOTFLEET_HOME=${shellQuote(path)} copilotfleet ps`,
    "Or set COPILOTFLEET_HOME to a folder of your own.",
  ];
}

/**
 * Refuses a folder above the state folder if another user could replace something in it. As with the files of ssh, each
 * folder must belong to root or to us, and others must not be able to write to it. A sticky folder such as /tmp is
 * safe, because only we can rename our own files there.
 *
 * @returns the deepest existing folder above `path`
 */
function checkParents(path: string, { env = process.env }: StateFolderOptions): string {
  let deepest = "/";
  for (const { path: at, stats } of wayTo(path)) {
    if (!stats.isSymbolicLink()) deepest = at;
    if (env[ALLOW_PARENTS] === "1") continue;
    const uid = process.getuid?.();
    if (uid !== undefined && stats.uid !== uid && stats.uid !== 0) {
      const what = `belongs to uid ${stats.uid}: its owner could put another folder in its place`;
      throw unsafeParent(path, at, what);
    }
    if (!stats.isSymbolicLink() && canOthersWrite(stats)) {
      const what = `others can write (mode ${modeOf(stats)}): they could put another folder in its place`;
      throw unsafeParent(path, at, what, `chmod go-w ${shellQuote(at)}`);
    }
  }
  return deepest;
}

/** Whether other users can replace what is in a folder. In a sticky folder, they cannot. */
function canOthersWrite({ mode, gid }: Stats): boolean {
  if ((mode & 0o1000) !== 0) return false;
  return (mode & 0o002) !== 0 || ((mode & 0o020) !== 0 && !isPrivateGroup(gid));
}

/**
 * Yields the folders and symbolic links from `/` down to `path`, without `path` itself. Follows the links. Ends at the
 * first name that does not exist.
 */
function* wayTo(path: string): Generator<{ path: string; stats: Stats }> {
  yield { path: "/", stats: lstatSync("/") };
  const names = namesOf(dirname(path));
  let links = 0;
  for (let at = "/"; names.length > 0; ) {
    const name = names.shift() ?? "";
    const next = join(at, name);
    const stats = lstatIfThere(next, path);
    if (stats === undefined) return;
    if (name !== "..") yield { path: next, stats };
    if (!stats.isSymbolicLink()) {
      at = next;
      continue;
    }
    links += 1;
    if (links > MOST_LINKS) throw unsafe(path, `lies behind more than ${MOST_LINKS} symbolic links`, []);
    const target = readlinkSync(next);
    if (isAbsolute(target)) at = "/";
    names.unshift(...namesOf(target));
  }
}

function namesOf(path: string): string[] {
  return path.split("/").filter((name) => name !== "" && name !== ".");
}

/**
 * Whether the group has no members other than root and us, according to the system's files. A folder is safe even if
 * such a group can write to it. That is common: many systems give each user their own group and a umask of 002, and in
 * Kubernetes, the pod's group may write to the root of a volume.
 */
function isPrivateGroup(gid: number): boolean {
  const uid = process.getuid?.();
  if (gid !== 0 && gid !== process.getgid?.()) return false;
  const users = entriesOf("/etc/passwd").map(([name, , id, group]) => ({ name, uid: Number(id), gid: Number(group) }));
  const isOurs = (user: { uid: number } | undefined) => user?.uid === 0 || user?.uid === uid;
  if (!users.filter((user) => user.gid === gid).every(isOurs)) return false;
  const entry = entriesOf("/etc/group").find(([, , id]) => id === String(gid));
  // In a container or with a directory service, the file might not list the group. A user's own group usually has the
  // user's number.
  if (entry === undefined) return gid === uid;
  const members = (entry[3] ?? "").split(",").filter((name) => name !== "");
  return members.every((member) => isOurs(users.find(({ name }) => name === member)));
}

function entriesOf(file: string): string[][] {
  const lines = readIfThere(file, () => readFileSync(file, "utf8"))?.split("\n") ?? [];
  return lines.filter((line) => line !== "").map((line) => line.split(":"));
}

/** A file or folder whose mode {@link restoreModes} changed, and its wrong mode. */
export interface RestoredMode {
  path: string;
  was: string;
}

/**
 * Restores the modes of the state folder and of the folders above it, as {@link checkStateFolder} needs them. Only
 * touches what belongs to this account. Landlock does not restrict `chmod`, so without this, an agent could stop the
 * whole fleet.
 *
 * @param deep whether to restore also the modes of the files and folders in the state folder and of each server: their
 * owner can use them, the group cannot write, and others can do nothing
 */
export function restoreModes(
  root: string,
  { deep, env = process.env }: { deep: boolean; env?: NodeJS.ProcessEnv },
): RestoredMode[] {
  const restored: RestoredMode[] = [];
  const restore = (path: string, stats: Stats | undefined, mode: number) => {
    if (stats === undefined || stats.uid !== process.getuid?.() || (stats.mode & 0o7777) === mode) return;
    chmodSync(path, mode);
    restored.push({ path, was: modeOf(stats) });
  };
  // Each folder is repaired before the next step looks into it.
  for (const { path, stats } of wayTo(root)) {
    if (stats.isDirectory()) restore(path, stats, modeAbove(stats, env[ALLOW_PARENTS] === "1"));
  }
  const stats = lstatIfThere(root, root);
  if (stats?.isDirectory() !== true) return restored;
  // Others may be allowed to read the folder.
  restore(root, stats, (stats.mode & 0o722) === 0o700 ? stats.mode & 0o7777 : 0o700);
  if (!deep) return restored;
  const servers = join(root, "servers");
  const restoreIn = (folder: string) => {
    for (const name of readIfThere(folder, () => readdirSync(folder)) ?? []) {
      const path = join(folder, name);
      const inner = lstatIfThere(path, root);
      // The operator may let a group read logs.
      if (inner?.isFile() === true) restore(path, inner, (inner.mode & 0o750) | 0o600);
      if (inner?.isDirectory() !== true) continue;
      restore(path, inner, (inner.mode & 0o2750) | 0o700);
      if (path === servers || folder === servers) restoreIn(path);
    }
  };
  restoreIn(root);
  return restored;
}

/**
 * The mode that a folder above the state folder needs, which is its own mode unless that makes the state unusable.
 *
 * @param mayBeUnsafe whether the operator accepts that others can write to the folder
 */
function modeAbove(stats: Stats, mayBeUnsafe: boolean): number {
  const mode = (stats.mode & 0o100) === 0 ? stats.mode | 0o700 : stats.mode;
  return (canOthersWrite(stats) && !mayBeUnsafe ? mode & ~0o022 : mode) & 0o7777;
}

/** Creates the state folder (mode 0700) if necessary, and checks it as {@link checkStateFolder} does. */
export function ensureStateFolder(path: string, options: StateFolderOptions = {}): void {
  checkStateFolder(path, options);
  try {
    makeFolder(path);
  } catch (error) {
    throw mediumError("write", path, error);
  }
  // Check again. The new folder may be on a network file system, or another user may have just created it.
  checkStateFolder(path, options);
}

/** Replaces a file of the state folder atomically, but not durably. @throws a system error. */
export function replaceStateFile(root: string, path: string, content: object): void {
  const temp = join(root, scratchName("tmp"));
  ensureStateFolder(root);
  try {
    writeFileSync(temp, `${JSON.stringify(content)}\n`, { mode: 0o600, flag: "wx" });
    chmodSync(temp, 0o600); // the umask may have removed bits
    renameSync(temp, path);
  } finally {
    rmSync(temp, { force: true });
  }
}

/** @param at the folder whose file system is checked: `path`, or the deepest existing folder above it */
function refuseFileSystem(path: string, at: string, { files, env = process.env }: StateFolderOptions): void {
  const found = unfitFileSystem(at, files ?? system().files);
  if (found?.kind === "kernel") {
    throw unsafe(path, `is on a file system that belongs to the kernel (${found.name}) and cannot keep files`, [
      "export COPILOTFLEET_HOME=<a folder on a local disk>",
    ]);
  }
  if (found === null || env[ALLOW_NETWORK] === "1") return;
  throw unsafe(
    path,
    `is on a network file system (${found.name}), where one host may not see what another host wrote`,
    [
      "export COPILOTFLEET_HOME=<a folder on a local disk>",
      `export ${ALLOW_NETWORK}=1  # if only this host ever uses the folder`,
    ],
  );
}

function unfitFileSystem(
  folder: string,
  files: Pick<ReturnType<typeof system>["files"], "unfit">,
): UnfitFileSystem | null {
  try {
    return files.unfit(folder);
  } catch (error) {
    throw mediumError("read", folder, error);
  }
}

/** @param root the state folder, for messages */
function lstatIfThere(path: string, root: string): Stats | undefined {
  try {
    return lstatSync(path, { throwIfNoEntry: false });
  } catch (error) {
    if (systemCode(error) === "ENOTDIR") throw unsafe(root, "lies below something that is not a folder", []);
    throw mediumError("read", root, error);
  }
}

function modeOf({ mode }: Stats): string {
  return (mode & 0o7777).toString(8).padStart(4, "0");
}

function unsafeParent(root: string, parent: string, what: string, ...repair: Suggestion[]): FleetError {
  return unsafe(root, `lies below ${quote(parent)}, which ${what}`, [
    ...repair,
    "export COPILOTFLEET_HOME=<a folder below your home folder>",
    `export ${ALLOW_PARENTS}=1  # if no other user can reach that folder`,
  ]);
}

function unsafe(path: string, what: string, suggestions: Suggestion[]): FleetError {
  return new FleetError("FLEET_STATE_UNSAFE", `The state folder ${quote(path)} ${what}.`, { suggestions });
}
