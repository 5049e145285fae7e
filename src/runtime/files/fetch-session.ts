import { mkdir, rename, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { systemCode } from "../../errors.js";
import { assertCopyable, copyBeside, sync } from "./copy-folder.js";
import { removeIfThere } from "./held-folder.js";
import { placePath, type StatePlace, statOf, takenPath, usable } from "./shared-storage.js";

/**
 * How many times to try to replace a session's folder with a block (a plain file). A try fails if a runtime recreates
 * the folder first.
 */
const BLOCK_TRIES = 20;

export interface Fetch {
  id: string;
  /** A unique id of this takeover, so that it never uses files that an earlier takeover left. */
  mark: string;
  from: StatePlace;
  to: StatePlace;
  /** Whether the session has a history. Its state must then exist in `from`. */
  hasHistory: boolean;
  /** Runs before each step that cannot be undone. Throws if this takeover may no longer fetch the session. */
  check: () => Promise<void>;
}

/**
 * Moves a session's state from one folder to another. If a runtime still has the session loaded at `from`, the
 * runtime's next write fails. A call after a crash continues where the last call stopped. The last step replaces any
 * files of the session that `to` already has.
 *
 * @throws FleetError `FLEET_STORAGE_UNUSABLE` when the storage fails, or when the session has too many files to copy.
 * Also when a session with a history has no files at `from`, because then the storage may not be mounted.
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
      await removeIfThere(join(target, id));
      await rm(join(target, id), { force: true }); // the block of an earlier takeover
      if (copy !== null) await rename(copy, join(target, id));
      await sync(target);
    } catch (error) {
      if (copy !== null) await rm(copy, { recursive: true, force: true });
      throw error;
    }
  });
}

/**
 * Deletes the original files of a session, which {@link fetchSession} has moved aside. Call this once the copy is
 * complete and recorded.
 */
export async function forgetTaken({ id, mark, from }: Pick<Fetch, "id" | "mark" | "from">): Promise<void> {
  await usable(from.shared, async () => await removeIfThere(takenPath(from, id, mark)));
}

/** Removes the block (a plain file) that a takeover left, so that a new session may have this id. */
export async function unblock(id: string, place: StatePlace): Promise<void> {
  const path = join(placePath(place), id);
  await usable(place.shared, async () => {
    if ((await statOf(path))?.isFile() === true) await rm(path);
  });
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

/**
 * Moves the session's folder from `path` to `taken`. If `taken` exists, an earlier call moved the session, and a
 * runtime then made the folder at `path` again. In that case, removes that folder.
 */
async function setAside(path: string, taken: string): Promise<void> {
  await mkdir(dirname(taken), { recursive: true, mode: 0o700 });
  if ((await statOf(taken)) === null) await rename(path, taken);
  else await removeIfThere(path);
}
