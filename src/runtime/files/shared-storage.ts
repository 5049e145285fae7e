import { randomBytes } from "node:crypto";
import type { Stats } from "node:fs";
import { access, constants, lstat, mkdir, readdir, readlink, rename, rm, symlink } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { shellQuote } from "../../config/values/text.js";
import { FleetError, quote, systemCode } from "../../errors.js";
import { HISTORY, sessionStatePath } from "../history/session-state.js";
import { copyInto } from "./copy-folder.js";
import { removeIfThere } from "./held-folder.js";
import { ifThereLater } from "./if-there.js";

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
    await symlink(target, link).catch((error: unknown) => {
      if (systemCode(error) !== "EEXIST") throw error; // another start in this home made the link
    });
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
  await mkdir(path, { mode: 0o700 }).catch((error: unknown) => {
    if (systemCode(error) !== "EEXIST") throw error;
  });
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
