import { randomBytes } from "node:crypto";
import { closeSync } from "node:fs";
import {
  copyFile,
  lstat,
  mkdir,
  open,
  readdir,
  readlink,
  rename,
  rm,
  symlink,
  utimes,
  writeFile,
} from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { FleetError, quote, systemCode } from "../../errors.js";
import { HISTORY, isInUseMark, sessionStatePath } from "../history/session-state.js";
import { type Budget, DEEPEST, HeldFolder, removeTree, walk } from "./held-folder.js";

/**
 * A place for the state of sessions, in a folder that several hosts mount:
 *
 * ```
 * <shared>/hosts/<host>/<group>/session-state/<session id>/   sessions of servers on that host; their homes link here
 * <shared>/hosts/<host>/<group>/taken/<session id>~<mark>/    a session that another host took, until that host has a copy
 * ```
 *
 * Each host's servers write only below that host's name. So two runtimes never share a folder, even if they disagree about
 * where a session is.
 *
 * A session moves to another host by a copy. A runtime may stall between opening a history and writing to it. After a copy,
 * it writes to the old file; after a rename, it would write to the new one (measured with runtime 1.0.85).
 *
 * A plain file stays where the session was. A runtime that still has the session loaded then cannot make its folder again,
 * and its turns fail. Without that file, its turns would be answered and lost (measured: `session.error` of type
 * `persistence`).
 */
export interface StatePlace {
  /** Absolute path of the folder that all hosts mount. */
  shared: string;
  host: string;
  /** The id of a user's own server, or {@link SHARED_GROUP} for the shared servers of a host. */
  group: string;
}

export const SHARED_GROUP = "shared";

/** How many entries of one session we copy. A session with more was filled by its user's agent, and stays where it is. */
const MOST_COPIED = 100_000;
/** How often we try to block a place while a runtime keeps making the folder there again. */
const BLOCK_TRIES = 20;

/** The folder of all sessions in one place. */
export function placePath({ shared, host, group }: StatePlace): string {
  return join(shared, "hosts", host, group, "session-state");
}

export const TAKEN_FOLDER = "taken";

/** The path to which a session is moved when it is taken from a place. */
export function takenPath({ shared, host, group }: StatePlace, id: string, mark: string): string {
  return join(shared, "hosts", host, group, TAKEN_FOLDER, `${id}~${mark}`);
}

/** Whether a session has a history in a place. @throws FleetError `FLEET_STORAGE_UNUSABLE` when the storage fails. */
export async function hasHistoryIn(place: StatePlace, id: string): Promise<boolean> {
  return await usable(place.shared, async () => (await statOf(join(placePath(place), id, HISTORY))) !== null);
}

/**
 * Makes the folder of a host. Also makes the shared folder if it is missing, but not the folders above it: a mistyped path
 * must not pass for a mounted folder. Makes one folder at a time, because Node's recursive `mkdir` never ends where the
 * kernel makes none (`/proc`).
 *
 * @returns its path.
 * @throws FleetError `FLEET_STORAGE_UNUSABLE` when the storage fails.
 */
export async function makeHostFolder(shared: string, host: string): Promise<string> {
  const path = join(shared, "hosts", host);
  await usable(shared, async () => {
    for (const folder of [shared, join(shared, "hosts"), path]) {
      await mkdir(folder, { mode: 0o700 }).catch((error: unknown) => {
        if (systemCode(error) !== "EEXIST") throw error;
      });
    }
  });
  return path;
}

/**
 * Makes a home keep its sessions in the place. Call it before the home's server starts. Moves the sessions that a server of
 * this home kept on this host's own disk. The host's folder must exist ({@link makeHostFolder}). If the home already links
 * to the place, the place must exist, too: a new one would hide that the storage is not mounted.
 *
 * @throws FleetError `FLEET_STORAGE_UNUSABLE` when a folder is missing or the storage fails.
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
      // Move only what is on this host's own disk: another place in shared storage is taken over session by session.
      // The user's agent made a link to anywhere else, perhaps to another user's sessions.
      const common = join(dirname(dirname(home)), SHARED_GROUP, "session-state");
      if (place.group === SHARED_GROUP && old === common && (await statOf(old)) !== null) await moveInto(old, target);
      await rm(link);
    } else if (before !== null) {
      await moveInto(link, target);
      await rename(link, `${link}.before-${randomBytes(4).toString("hex")}`);
    }
    await symlink(target, link).catch((error: unknown) => {
      if (systemCode(error) !== "EEXIST") throw error; // another start of a server in this home made it
    });
  });
}

/** Makes a place, but no folder above the group's: if one is missing, nothing is mounted, or the wrong thing is. */
async function makePlace(place: StatePlace): Promise<void> {
  const target = placePath(place);
  const hostFolder = dirname(dirname(target));
  if ((await statOf(hostFolder))?.isDirectory() !== true) {
    throw new FleetError(
      "FLEET_STORAGE_UNUSABLE",
      `The folder ${quote(hostFolder)} of this host in the shared storage does not exist. Either nothing is mounted, or serve has never run on this host.`,
      { suggestions: [`findmnt --target ${place.shared}`, "copilotfleet serve"] },
    );
  }
  for (const folder of [dirname(target), target]) {
    await mkdir(folder, { mode: 0o700 }).catch((error: unknown) => {
      if (systemCode(error) !== "EEXIST") throw error;
    });
  }
}

async function assertThere(folder: string): Promise<void> {
  if ((await statOf(folder))?.isDirectory() !== true) throw new Error(`the folder ${folder} does not exist`);
}

/**
 * Moves the sessions one by one, and removes each only when its copy is complete. A session that is already in `target` is
 * newer, so the old one stays behind.
 */
async function moveInto(folder: string, target: string): Promise<void> {
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    const { name } = entry;
    if (!entry.isDirectory() || (await statOf(join(target, name))) !== null) continue;
    await copyInto(join(folder, name), target, name);
    await rm(join(folder, name), { recursive: true });
  }
}

/** A takeover. It has a unique `mark`, so that it never mistakes what an earlier takeover left behind for the session. */
export interface Fetch {
  id: string;
  mark: string;
  from: StatePlace;
  to: StatePlace;
  /** Whether the session has a history. If so, its state must exist in `from`. */
  hasHistory: boolean;
  /** Runs before each step that cannot be undone. Throws if this takeover may no longer fetch the session. */
  check: () => Promise<void>;
}

/**
 * Takes a session's state from one place to another. From then on, a runtime that still has the session loaded at `from`
 * cannot write to it, nor believe that it has. A call after a crash continues where the last one stopped. The last step
 * replaces anything that is already at `to`.
 *
 * @throws FleetError `FLEET_STORAGE_UNUSABLE` when the storage fails, or when a session with a history is not there: if the
 * folder is not mounted, the session must not look like one without a history. Also throws what `check` throws.
 */
export async function fetchSession({ id, mark, from, to, hasHistory, check }: Fetch): Promise<void> {
  await usable(to.shared, async () => {
    const [source, taken] = [join(placePath(from), id), takenPath(from, id, mark)];
    const isThere = (await statOf(source))?.isDirectory() === true || (await statOf(taken)) !== null;
    if (!isThere && hasHistory) throw new Error(`session ${id} has no files at ${source}`);
    assertCopyable(source);
    await check();
    await block(source, taken);
    const target = placePath(to);
    await mkdir(target, { recursive: true, mode: 0o700 });
    const copy = (await statOf(taken)) === null ? null : await copyBeside(taken, target);
    try {
      await check();
      await rm(join(target, id), { recursive: true, force: true });
      if (copy !== null) await rename(copy, join(target, id));
      await sync(target);
    } catch (error) {
      if (copy !== null) await rm(copy, { recursive: true, force: true });
      throw error;
    }
  });
}

/**
 * Deletes the original of a session. Call it once the copy is in its place and recorded as such.
 *
 * @throws FleetError `FLEET_STORAGE_UNUSABLE` when the storage fails.
 */
export async function forgetTaken({ id, mark, from }: Pick<Fetch, "id" | "mark" | "from">): Promise<void> {
  await usable(from.shared, async () => await removeIfThere(takenPath(from, id, mark)));
}

/**
 * Allows a new session with this id in the place, even if a session with this id was taken from it.
 *
 * @throws FleetError `FLEET_STORAGE_UNUSABLE` when the storage fails.
 */
export async function unblock(id: string, place: StatePlace): Promise<void> {
  const path = join(placePath(place), id);
  await usable(place.shared, async () => {
    if ((await statOf(path))?.isFile() === true) await rm(path);
  });
}

/** Removes a session's state from a place, but not a block. @throws FleetError `FLEET_STORAGE_UNUSABLE` on failure. */
export async function removeState(id: string, place: StatePlace): Promise<void> {
  const path = join(placePath(place), id);
  await usable(place.shared, async () => {
    if ((await statOf(path))?.isDirectory() === true) await removeIfThere(path);
  });
}

/** The host's places by group, even without servers. @throws FleetError `FLEET_STORAGE_UNUSABLE` when the storage fails. */
export async function placesOf(shared: string, host: string): Promise<Map<string, string>> {
  return await usable(shared, async () => {
    const groups = await readdir(join(shared, "hosts", host)).catch((error: unknown) => {
      if (systemCode(error) === "ENOENT") return []; // the host has no places yet
      throw error;
    });
    return new Map(groups.map((group) => [group, placePath({ shared, host, group })]));
  });
}

/** A new path beside a place, for a copy that will be moved into the place. */
export function incomingPath(group: string): string {
  return join(group, `.incoming-${randomBytes(6).toString("hex")}`);
}

async function block(path: string, taken: string): Promise<void> {
  for (let attempt = 0; attempt < BLOCK_TRIES; attempt++) {
    const found = await statOf(path);
    if (found?.isDirectory() === true) await setAside(path, taken);
    try {
      await mkdir(dirname(path), { recursive: true, mode: 0o700 });
      await writeFile(path, "", { flag: "wx", mode: 0o600 });
      return;
    } catch (error) {
      if (systemCode(error) !== "EEXIST") throw error;
      if ((await statOf(path))?.isFile() === true) return; // it is already blocked
    }
  }
  throw new Error(`another process keeps creating ${path}`);
}

/** If the session was set aside before, a runtime made this folder later. Nobody can rely on its contents: remove it. */
async function setAside(path: string, taken: string): Promise<void> {
  await mkdir(dirname(taken), { recursive: true, mode: 0o700 });
  if ((await statOf(taken)) === null) await rename(path, taken);
  else await removeIfThere(path);
}

/** Removes a folder, even one that an agent may still write in. */
export async function removeIfThere(path: string): Promise<void> {
  try {
    await removeTree(path, { left: Number.POSITIVE_INFINITY });
  } catch (error) {
    if (systemCode(error) !== "ENOENT") throw error;
  }
}

/** Copies a folder to `name` in `target`, either completely or not at all, and syncs it to disk. */
async function copyInto(from: string, target: string, name: string): Promise<void> {
  const copy = await copyBeside(from, target);
  await rename(copy, join(target, name));
  await sync(target);
}

/** Copies a folder to a new path beside `target`, on the same file system. @returns that path. */
async function copyBeside(from: string, target: string): Promise<string> {
  const copy = incomingPath(dirname(target));
  try {
    await copyFolder(from, copy);
    return copy;
  } catch (error) {
    await rm(copy, { recursive: true, force: true });
    throw error;
  }
}

/**
 * The user's agent may still write in `from` during the copy, and decides what is there. So links, pipes and devices are
 * left out.
 */
async function copyFolder(from: string, to: string): Promise<void> {
  using source = HeldFolder.open(from);
  if (source === null) throw new Error(`${from} is not a folder`);
  await copyHeld(source, to, { left: MOST_COPIED }, 0);
}

async function copyHeld(source: HeldFolder, to: string, budget: Budget, depth: number): Promise<void> {
  const { entries, more } = source.entries(Math.max(0, budget.left));
  budget.left -= entries.length;
  if (more || depth > DEEPEST) {
    throw tooLarge(source.realPath);
  }
  await mkdir(to, { mode: 0o700 });
  for (const { name } of entries) {
    const copy = join(to, name);
    const stats = source.lstat(name);
    if (stats?.isDirectory() === true) {
      using child = source.folder(name);
      if (child !== null) await copyHeld(child, copy, budget, depth + 1);
    } else if (stats?.isFile() === true && !isInUseMark(name)) {
      const fd = source.file(name);
      if (fd === null) continue;
      try {
        await copyFile(`/proc/self/fd/${fd}`, copy);
      } finally {
        closeSync(fd);
      }
      // Keep the times, because a copy does not count as a use of the session.
      await utimes(copy, stats.atime, stats.mtime);
      await sync(copy);
    }
  }
  await sync(to);
}

function tooLarge(path: string): Error {
  const limit = `more than ${MOST_COPIED} files and folders, or is nested more than ${DEEPEST} folders deep`;
  return new Error(`${path} has ${limit}, so it is not moved`);
}

/** Call it before anything is done to the session. @throws when the session is too large to be copied. */
function assertCopyable(path: string): void {
  using folder = HeldFolder.open(path);
  if (folder !== null && walk(folder, { left: MOST_COPIED }, () => true) === "cut") throw tooLarge(path);
}

async function sync(path: string): Promise<void> {
  const handle = await open(path, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

async function statOf(path: string) {
  try {
    return await lstat(path);
  } catch (error) {
    const code = systemCode(error);
    if (code === "ENOENT" || code === "ENOTDIR") return null;
    throw error;
  }
}

/** @throws FleetError `FLEET_STORAGE_UNUSABLE` when `work` fails with anything but a FleetError. */
export async function usable<T>(shared: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    if (cause instanceof FleetError) throw cause;
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new FleetError("FLEET_STORAGE_UNUSABLE", `The shared storage ${quote(shared)} cannot be used: ${why}.`, {
      suggestions: ["copilotfleet doctor", `df -h ${shared}`],
      cause,
    });
  }
}
