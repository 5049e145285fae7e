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
import { FleetError, quote, systemCode } from "../errors.js";
import { type Budget, DEEPEST, HeldFolder, removeTree, walk } from "./held-folder.js";
import { HISTORY, isInUseMark, sessionStatePath } from "./session-state.js";

/**
 * The state of sessions in a folder that several hosts mount:
 *
 * ```
 * <shared>/hosts/<host>/<group>/session-state/<session id>/   of servers on that host; a link in their homes points here
 * <shared>/hosts/<host>/<group>/taken/<session id>~<mark>/    taken from it by another host, until that has a copy
 * ```
 *
 * Each host's servers write below its own name only, so two runtimes never have one folder, whatever they believe. A session
 * changes hosts by a copy: a runtime that was stalled between opening a history and writing to it then writes to the old
 * file (after a rename it would write to the new one; measured with runtime 1.0.85). And where the session was a plain file is
 * left: a runtime that still has it loaded cannot make its folder anew, and its turns fail, where they would be answered and
 * lost (measured: `session.error` of type `persistence`).
 */
export interface StatePlace {
  /** Absolute path of the folder that all hosts mount. */
  shared: string;
  host: string;
  /** The id of a user's own server, or {@link SHARED_GROUP} for what shared servers of a host have in common. */
  group: string;
}

export const SHARED_GROUP = "shared";

/** How much of one session is copied. One with more was filled by its user's agent, and stays where it is. */
const MOST_COPIED = 100_000;
/** How often a place is blocked anew when a runtime makes the folder there again in between. */
const BLOCK_TRIES = 20;

/** The folder of all sessions in one place. */
export function placePath({ shared, host, group }: StatePlace): string {
  return join(shared, "hosts", host, group, "session-state");
}

export const TAKEN_FOLDER = "taken";

/** Where a session waits that was taken from a place. */
export function takenPath({ shared, host, group }: StatePlace, id: string, mark: string): string {
  return join(shared, "hosts", host, group, TAKEN_FOLDER, `${id}~${mark}`);
}

/** Whether the history of a session is in a place. @throws FleetError `FLEET_STORAGE_UNUSABLE`. */
export async function hasHistoryIn(place: StatePlace, id: string): Promise<boolean> {
  return await usable(place.shared, async () => (await statOf(join(placePath(place), id, HISTORY))) !== null);
}

/**
 * Makes the folder of a host. The shared one may be missing, but not what that is to be in: a path with a slip in it is no
 * mounted folder. Step by step: Node's own way to make all of them at once never ends where the kernel makes none (`/proc`).
 *
 * @returns its path. @throws FleetError `FLEET_STORAGE_UNUSABLE`.
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
 * Makes a home keep its sessions in the place, before its server starts. What a server of this home had before on its own
 * disk goes along. The folder of the host has to be there ({@link makeHostFolder}), and so has the place of a home that was
 * linked to it before: made anew, it would hide what is there once the storage is mounted again.
 *
 * @throws FleetError `FLEET_STORAGE_UNUSABLE`.
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
      // Only what is on this host's own disk: another place in shared storage is taken over session by session.
      // A link to anywhere else was made by the user's agent, perhaps to another user's sessions.
      const common = join(dirname(dirname(home)), SHARED_GROUP, "session-state");
      if (place.group === SHARED_GROUP && old === common && (await statOf(old)) !== null) await moveInto(old, target);
      await rm(link);
    } else if (before !== null) {
      await moveInto(link, target);
      await rename(link, `${link}.before-${randomBytes(4).toString("hex")}`);
    }
    await symlink(target, link).catch((error: unknown) => {
      if (systemCode(error) !== "EEXIST") throw error; // another server's start, of the same home
    });
  });
}

/** Not the folder of the host, nor what that is in: without them nothing is mounted, or the wrong thing is. */
async function makePlace(place: StatePlace): Promise<void> {
  const target = placePath(place);
  const hostFolder = dirname(dirname(target));
  if ((await statOf(hostFolder))?.isDirectory() !== true) {
    throw new FleetError(
      "FLEET_STORAGE_UNUSABLE",
      `The folder ${quote(hostFolder)} of this host in the shared storage is not there: nothing is mounted, or no serve has run here yet.`,
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
  if ((await statOf(folder))?.isDirectory() !== true) throw new Error(`the folder ${folder} is not there`);
}

/** Each session by itself, and none before its copy is there. One that is there already is newer: the old one stays behind. */
async function moveInto(folder: string, target: string): Promise<void> {
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    const { name } = entry;
    if (!entry.isDirectory() || (await statOf(join(target, name))) !== null) continue;
    await copyInto(join(folder, name), target, name);
    await rm(join(folder, name), { recursive: true });
  }
}

/** A takeover: `mark` is its own, so that what an earlier one left behind is never taken for the session. */
export interface Fetch {
  id: string;
  mark: string;
  from: StatePlace;
  to: StatePlace;
  /** Whether the session has a history, so that something of it must be there. */
  hasHistory: boolean;
  /** Makes sure, before each step that cannot be undone, that the session is still to be fetched by this one. */
  check: () => Promise<void>;
}

/**
 * Takes a session's state from one place to another: from here on no runtime that still has it loaded there can write to it,
 * or believe that it has. Once more after a crash goes on where it was; what lies at `to` already is replaced, last of all.
 *
 * @throws FleetError `FLEET_STORAGE_UNUSABLE`, also when the session has a history and it is not there: a folder that is not
 * mounted must not pass for a session without one. What `check` throws.
 */
export async function fetchSession({ id, mark, from, to, hasHistory, check }: Fetch): Promise<void> {
  await usable(to.shared, async () => {
    const [source, taken] = [join(placePath(from), id), takenPath(from, id, mark)];
    const isThere = (await statOf(source))?.isDirectory() === true || (await statOf(taken)) !== null;
    if (!isThere && hasHistory) throw new Error(`nothing of session ${id} is at ${source}`);
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

/** The copy is where it belongs, and recorded as such: nobody needs the original any more. */
export async function forgetTaken({ id, mark, from }: Pick<Fetch, "id" | "mark" | "from">): Promise<void> {
  await usable(from.shared, async () => await removeIfThere(takenPath(from, id, mark)));
}

/** A new session of this id may be made in the place, also where one of that id was taken from it. */
export async function unblock(id: string, place: StatePlace): Promise<void> {
  const path = join(placePath(place), id);
  await usable(place.shared, async () => {
    if ((await statOf(path))?.isFile() === true) await rm(path);
  });
}

/** Removes the state of a session from a place. A block that was left there stays. */
export async function removeState(id: string, place: StatePlace): Promise<void> {
  const path = join(placePath(place), id);
  await usable(place.shared, async () => {
    if ((await statOf(path))?.isDirectory() === true) await removeIfThere(path);
  });
}

/** The places of a host, by their groups, whether it has servers there or not. @throws FleetError `FLEET_STORAGE_UNUSABLE`. */
export async function placesOf(shared: string, host: string): Promise<Map<string, string>> {
  return await usable(shared, async () => {
    const groups = await readdir(join(shared, "hosts", host)).catch((error: unknown) => {
      if (systemCode(error) === "ENOENT") return []; // it has none yet
      throw error;
    });
    return new Map(groups.map((group) => [group, placePath({ shared, host, group })]));
  });
}

/** A new name beside a place, for a copy that is on its way into it. */
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
      if ((await statOf(path))?.isFile() === true) return; // blocked before
    }
  }
  throw new Error(`${path} is made anew again and again`);
}

/** A folder that a runtime made anew, after the true one was set aside, has nothing in it that anybody may rely on. */
async function setAside(path: string, taken: string): Promise<void> {
  await mkdir(dirname(taken), { recursive: true, mode: 0o700 });
  if ((await statOf(taken)) === null) await rename(path, taken);
  else await removeIfThere(path);
}

/** A folder that an agent may still write in. */
export async function removeIfThere(path: string): Promise<void> {
  try {
    await removeTree(path, { left: Number.POSITIVE_INFINITY });
  } catch (error) {
    if (systemCode(error) !== "ENOENT") throw error;
  }
}

/** Copies a folder to `name` in `target`, whole or not at all, and onto the disk. */
async function copyInto(from: string, target: string, name: string): Promise<void> {
  const copy = await copyBeside(from, target);
  await rename(copy, join(target, name));
  await sync(target);
}

/** Copies a folder to a name of its own beside `target`, on the same file system. @returns its path. */
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
 * The user's agent may still write in `from` while it is copied, and what is there is its own choice: links are left out,
 * and so are pipes and devices.
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
      // What nobody has used for long is not used by this.
      await utimes(copy, stats.atime, stats.mtime);
      await sync(copy);
    }
  }
  await sync(to);
}

function tooLarge(path: string): Error {
  const limit = `more than ${MOST_COPIED} files and folders, or folders more than ${DEEPEST} deep`;
  return new Error(`${path} has ${limit}, so it is not moved`);
}

/** @throws for a session that is too large to be copied, while nothing has been done to it. */
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

/** @throws FleetError `FLEET_STORAGE_UNUSABLE` for what the file system fails with. */
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
