import { randomBytes } from "node:crypto";
import { linkSync, readdirSync, readFileSync, renameSync, rmSync, type Stats, writeFileSync } from "node:fs";
import {
  access,
  appendFile,
  constants,
  link,
  lstat,
  mkdir,
  open,
  readdir,
  readFile,
  readlink,
  rename,
  rm,
  symlink,
  writeFile,
} from "node:fs/promises";
import { hostname } from "node:os";
import { dirname, join, resolve } from "node:path";
import { FleetError, quote, systemCode } from "../../base/errors.js";
import { HeldFolder, removeIfThere, walk } from "../../base/held-folder.js";
import { userDigest } from "../../base/ids.js";
import { ifThereLater } from "../../base/if-there.js";
import type { FileSystem } from "../../base/system/system.js";
import { parseObject, shellQuote } from "../../base/values/text.js";
import { isHostName } from "../../config/rules.js";
import type { Config } from "../../config/schema.js";
import { failsWith, readIfThere } from "../../store/file/failures.js";
import { ensureStateFolder } from "../../store/file/state-folder.js";
import { HISTORY, sessionStatePath } from "../history/session-state.js";
import { copyInto } from "./copy-folder.js";
import { unwritable } from "./server-folder.js";

/**
 * The folder of a group of sessions, below a folder that several hosts mount:
 *
 * ```
 * <shared>/hosts/<host>/<group>/session-state/<session id>/   sessions of servers on that host; their homes link here
 * <shared>/hosts/<host>/<group>/taken/<session id>~<mark>/    a session that another host took and still has to copy
 * ```
 *
 * Servers write only to the folders of their own host and group, so two hosts never write to the same folder.
 *
 * A session moves to another host by a copy, not by a rename, because a runtime may still have the history open and
 * write to it after the move. After a copy, it writes to the old file. After a rename, it would write to the moved file
 * (measured with runtime 1.0.85).
 *
 * A plain file, the block, stays where the session was. It prevents a runtime that still has the session loaded from
 * making the session's folder again, so turns there fail. Without a block, these turns would be answered and then lost
 * (measured: `session.error` of type `persistence`).
 */
export interface StatePlace {
  shared: string;
  host: string;
  /** The id of a user's own server, or {@link SHARED_GROUP} for the shared servers of a host. */
  group: string;
}

export const SHARED_GROUP = "shared";

export function placePath({ shared, host, group }: StatePlace): string {
  return join(shared, "hosts", host, group, "session-state");
}

export const TAKEN_FOLDER = "taken";

export function takenPath({ shared, host, group }: StatePlace, id: string, mark: string): string {
  return join(shared, "hosts", host, group, TAKEN_FOLDER, `${id}~${mark}`);
}

export async function hasHistoryIn(place: StatePlace, id: string): Promise<boolean> {
  return await usable(place.shared, async () => (await statOf(join(placePath(place), id, HISTORY))) !== null);
}

/**
 * Makes the shared folder and the host's folder in it. Does not make a folder above the shared folder, because the path
 * may be mistyped. Makes one folder at a time, because Node's recursive `mkdir` never ends in `/proc`.
 */
export async function makeHostFolder(shared: string, host: string): Promise<void> {
  const path = join(shared, "hosts", host);
  await usable(shared, async () => {
    for (const folder of [shared, join(shared, "hosts"), path]) await makeFolder(folder);
    await access(path, constants.W_OK);
  });
}

/** Whether the host's folder is there. If not, nothing is mounted at the shared folder, or another file system is. */
export async function hasHostFolder(shared: string, host: string): Promise<boolean> {
  return await usable(shared, async () => (await statOf(join(shared, "hosts", host)))?.isDirectory() === true);
}

/**
 * Links a home to its folder in the shared storage, before the home's server starts. Moves the home's sessions from
 * this host's own disk to that folder. If the home already has the link, its target must exist. Otherwise this function
 * fails, because a new folder would hide that the storage is not mounted.
 */
export async function linkToPlace(home: string, place: StatePlace): Promise<void> {
  const target = placePath(place);
  const link = sessionStatePath(home);
  await usable(place.shared, async () => {
    const before = await statOf(link);
    const old = before?.isSymbolicLink() === true ? resolve(home, await readlink(link)) : null;
    if (old === target) return await assertThere(target);
    await makePlace(place);
    if (old !== null) {
      // `old` is where the home's link leads. Move sessions from there only if it is this host's common folder. If it
      // is elsewhere in the storage, takeovers move them. The agent may have made a link to any other folder.
      const common = join(dirname(dirname(home)), SHARED_GROUP, "session-state");
      if (place.group === SHARED_GROUP && old === common && (await statOf(old)) !== null) await moveInto(old, target);
      await rm(link);
    } else if (before !== null) {
      await moveInto(link, target);
      await rename(link, `${link}.before-${randomBytes(4).toString("hex")}`);
    }
    await symlink(target, link).catch(ignoreExisting); // another start in this home may have made the link
  });
}

/** Makes the folder of a group. The host's folder above it must exist; otherwise the storage is not mounted. */
async function makePlace(place: StatePlace): Promise<void> {
  const target = placePath(place);
  if (!(await hasHostFolder(place.shared, place.host))) {
    const hostFolder = dirname(dirname(target));
    throw new FleetError(
      "FLEET_STORAGE_UNUSABLE",
      `The folder ${quote(hostFolder)} of this host in the shared storage does not exist. Either nothing is mounted, or serve has never run on this host.`,
      { suggestions: [`findmnt --target ${place.shared}`, "copilotfleet serve"] },
    );
  }
  for (const folder of [dirname(target), target]) await makeFolder(folder);
}

/** Makes a folder unless it exists. Does not block this process, because the storage may be slow or hang. */
async function makeFolder(path: string): Promise<void> {
  await mkdir(path, { mode: 0o700 }).catch(ignoreExisting);
}

function ignoreExisting(error: unknown): void {
  if (systemCode(error) !== "EEXIST") throw error;
}

async function assertThere(folder: string): Promise<void> {
  if ((await statOf(folder))?.isDirectory() !== true) throw new Error(`the folder ${folder} does not exist`);
}

/** Moves the sessions one by one. Leaves out sessions that `target` already has, because those are newer. */
async function moveInto(folder: string, target: string): Promise<void> {
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    const { name } = entry;
    if (!entry.isDirectory() || (await statOf(join(target, name))) !== null) continue;
    await copyInto(join(folder, name), target, name);
    await removeIfThere(join(folder, name));
  }
}

/** Removes a session's folder. Leaves the block (a plain file) of a session that another host has taken. */
export async function removeState(id: string, place: StatePlace): Promise<void> {
  const path = join(placePath(place), id);
  await usable(place.shared, async () => {
    if ((await statOf(path))?.isDirectory() === true) await removeIfThere(path);
  });
}

/** The path of each group's `session-state` folder on a host, by group. Includes groups without a recorded server. */
export async function placesOf(shared: string, host: string): Promise<Map<string, string>> {
  return await usable(shared, async () => {
    const groups = await ifThereLater(async () => await readdir(join(shared, "hosts", host)));
    return new Map((groups ?? []).map((group) => [group, placePath({ shared, host, group })]));
  });
}

export async function statOf(path: string): Promise<Stats | null> {
  return await ifThereLater(async () => await lstat(path));
}

/** Runs `work`. Turns each failure of the storage into the FleetError `FLEET_STORAGE_UNUSABLE`. */
export async function usable<T>(shared: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    if (cause instanceof FleetError) throw cause;
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new FleetError("FLEET_STORAGE_UNUSABLE", `The shared storage ${quote(shared)} cannot be used: ${why}.`, {
      suggestions: ["copilotfleet doctor", `df -h ${shellQuote(shared)}`],
      cause,
    });
  }
}

/**
 * The content of `host.json`. It identifies this host by its name in the fleet and by the random id of its state
 * folder.
 */
interface HostNote {
  name: string;
  instance: string;
}

function pathOf(stateRoot: string): string {
  return join(stateRoot, "host.json");
}

/**
 * The name of this host: from the configuration, or else from `host.json` in this state folder, or else the machine's
 * name. The first `serve` or server writes that file, so that the host keeps its name when the machine is renamed.
 */
export function ownHostName({ host }: Pick<Config, "host">, stateRoot: string): string {
  const name = host.name ?? readNote(stateRoot)?.name ?? hostname().toLowerCase();
  if (isHostName(name)) return name;
  throw new FleetError(
    "FLEET_CONFIG_INVALID",
    `The name of this machine, ${quote(name)}, is not a valid name for a host of the fleet.`,
    { suggestions: ["export COPILOTFLEET_HOST_NAME=host-1"] },
  );
}

function readNote(stateRoot: string): HostNote | null {
  let text: string;
  try {
    text = readFileSync(pathOf(stateRoot), "utf8");
  } catch (error) {
    if (systemCode(error) === "ENOENT") return null;
    throw unreadable(stateRoot, error);
  }
  const { name, instance } = parseObject(text) ?? {};
  if (typeof name === "string" && typeof instance === "string") return { name, instance };
  throw unreadable(stateRoot, undefined);
}

/** Throws if the configuration renames a host whose servers and sessions Redis records under the old name. */
export function refuseRenamed({ store, host }: Pick<Config, "store" | "host">, stateRoot: string): void {
  if (store.kind === "file" || host.name === null) return;
  const before = readNote(stateRoot)?.name ?? host.name;
  if (before === host.name || !hasServers(stateRoot)) return;
  throw new FleetError(
    "FLEET_CONFIG_INVALID",
    `host.name is ${quote(host.name)}, but the state folder ${quote(stateRoot)} holds the servers and sessions of host ${quote(before)}.`,
    {
      suggestions: [
        `export COPILOTFLEET_HOST_NAME=${before}`,
        "To run another host, set COPILOTFLEET_HOME to another folder.",
      ],
    },
  );
}

function hasServers(stateRoot: string): boolean {
  const folder = join(stateRoot, "servers");
  return (readIfThere(folder, () => readdirSync(folder)) ?? []).length > 0;
}

/** The random id of this state folder, or null if neither `serve` nor a server has run on it. */
export function instanceOf(stateRoot: string): string | null {
  return readNote(stateRoot)?.instance ?? null;
}

/**
 * Returns the content of this state folder's `host.json`. Writes the file first if it is missing or contains another
 * name.
 */
export function ensureNote(stateRoot: string, name: string): HostNote {
  const before = readNote(stateRoot);
  if (before?.name === name) return before;
  const note = { name, instance: before?.instance ?? randomBytes(16).toString("hex") };
  const path = pathOf(stateRoot);
  const temp = `${path}.${note.instance.slice(0, 8)}.tmp`;
  try {
    ensureStateFolder(stateRoot);
    writeFileSync(temp, `${JSON.stringify(note)}\n`, { mode: 0o600 });
    if (before === null) linkSync(temp, path);
    else renameSync(temp, path);
  } catch (error) {
    // If another process of this host wrote the file first, use its content.
    const others = systemCode(error) === "EEXIST" ? readNote(stateRoot) : null;
    if (others?.name !== name) throw unwritable(path, error);
    return others;
  } finally {
    rmSync(temp, { force: true });
  }
  return note;
}

export function removeNote(stateRoot: string): void {
  rmSync(pathOf(stateRoot), { force: true });
}

function unreadable(stateRoot: string, cause: unknown): FleetError {
  return new FleetError("FLEET_STATE_CORRUPT", `${quote(pathOf(stateRoot))} does not name this host.`, {
    suggestions: [
      `rm ${shellQuote(pathOf(stateRoot))}`,
      "export COPILOTFLEET_HOST_NAME=NAME  # the earlier name of the host",
    ],
    cause,
  });
}

/** The types of file systems that only one machine can see. */
const LOCAL_TYPES = /^(?:ext[234]|xfs|btrfs|zfs|tmpfs|ramfs|overlay|f2fs|vfat|exfat|ntfs3?|apfs|hfs)$/;

export function isLocal({ type }: FileSystem): boolean {
  return LOCAL_TYPES.test(type);
}

/**
 * Tests whether the file system of `folder` has the properties that session state depends on. Uses a temporary folder
 * below `folder`.
 *
 * @returns the problems, as ends of the sentence "this file system …"; empty if there are none
 */
export async function problemsOf(folder: string): Promise<string[]> {
  const trial = join(folder, `.copilotfleet-trial-${randomBytes(6).toString("hex")}`);
  await mkdir(trial, { mode: 0o700 });
  try {
    const problems: string[] = [];
    for (const [problem, holds] of Object.entries(TRIALS)) {
      // A trial that throws has also failed, because the file system refused the operation.
      const code = await holds(trial).then(
        (held) => (held ? null : ""),
        (error: unknown) => systemCode(error) ?? String(error),
      );
      if (code !== null) problems.push(code === "" ? problem : `${problem} (${code})`);
    }
    return problems;
  } finally {
    await rm(trial, { recursive: true, force: true });
  }
}

/** Each key describes the problem that exists if its trial fails. Later trials use the files of earlier trials. */
const TRIALS: Readonly<Record<string, (folder: string) => Promise<boolean>>> = {
  "does not replace a file by a rename": async (folder) => {
    const [old, fresh] = [join(folder, "old"), join(folder, "fresh")];
    await writeFile(old, "old");
    await writeFile(fresh, "fresh");
    await rename(fresh, old);
    return (await readFile(old, "utf8")) === "fresh" && (await failsWith(["ENOENT"], () => readFile(fresh)));
  },
  "lets a rename replace a folder that is not empty": async (folder) => {
    const [full, other] = [join(folder, "full"), join(folder, "other")];
    await mkdir(full);
    await writeFile(join(full, "entry"), "");
    await mkdir(other);
    return await failsWith(["ENOTEMPTY", "EEXIST"], () => rename(other, full));
  },
  "lets two processes create the same file": async (folder) => {
    const path = join(folder, "one");
    await writeFile(path, "", { flag: "wx" });
    return await failsWith(["EEXIST"], () => writeFile(path, "", { flag: "wx" }));
  },
  "has no hard links, or lets one replace a file": async (folder) => {
    const [source, target] = [join(folder, "source"), join(folder, "target")];
    await writeFile(source, "linked");
    await link(source, target);
    return (await readFile(target, "utf8")) === "linked" && (await failsWith(["EEXIST"], () => link(source, target)));
  },
  "has no symbolic links": async (folder) => {
    const path = join(folder, "symbolic");
    await symlink("old", path);
    return (await readFile(path, "utf8")) === "fresh";
  },
  "does not append to a file": async (folder) => {
    const path = join(folder, "log");
    await appendFile(path, "one");
    await appendFile(path, "two");
    return (await readFile(path, "utf8")) === "onetwo";
  },
  "does not sync files or folders": async (folder) => {
    for (const path of [join(folder, "log"), folder]) {
      const handle = await open(path, "r");
      await handle.sync().finally(async () => await handle.close());
    }
    return true;
  },
  "treats names that differ only in case as one name": async (folder) =>
    await failsWith(["ENOENT"], () => readFile(join(folder, "LOG"))),
};

/* The places outside a home where data of a user or of a session is stored. */

/**
 * The path of the file with the prompts that a user typed in chats. @param owner the user; for a chat at a front door,
 * a text with the door's address
 */
export function chatHistoryPath(stateRoot: string, owner: string): string {
  return join(stateRoot, "chat", `${userDigest(owner)}.jsonl`);
}

/**
 * Removes the folders of a user's own server from the shared storage.
 *
 * @param hosts the hosts whose folders to search
 * @returns the size of the removed files, in bytes
 */
export async function removePlacesOf(shared: string, hosts: readonly string[], serverId: string): Promise<number> {
  let bytes = 0;
  await usable(shared, async () => {
    for (const host of hosts) {
      const path = join(shared, "hosts", host, serverId);
      using folder = HeldFolder.open(path);
      if (folder === null) continue;
      for (const { size } of walk(folder, { left: Number.POSITIVE_INFINITY })) bytes += size;
      await removeIfThere(path);
    }
  });
  return bytes;
}

/** Removes the originals of a session that takeovers have left in the `taken` folders of these hosts. */
export async function removeTakenOf(shared: string, hosts: readonly string[], id: string): Promise<void> {
  await usable(shared, async () => {
    for (const host of hosts) {
      const groups = (await ifThereLater(async () => await readdir(join(shared, "hosts", host)))) ?? [];
      for (const group of groups) {
        const folder = join(shared, "hosts", host, group, TAKEN_FOLDER);
        const names = (await ifThereLater(async () => await readdir(folder))) ?? [];
        for (const name of names) if (name.startsWith(`${id}~`)) await removeIfThere(join(folder, name));
      }
    }
  });
}
