import { existsSync, mkdirSync, symlinkSync } from "node:fs";
import { rename, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { systemCode } from "../../../errors.js";
import { busyError } from "../../failures.js";
import type { StoreContext } from "../context.js";
import { writing } from "../failures.js";
import { closeQuietly, makeFolder, scratchName, syncFolder, writeNewFile } from "./durable.js";
import { listFolder } from "./head.js";
import { encodeRevision, revisionName } from "./revision.js";

/**
 * Creates a document's folder. One rename makes the folder appear together with its first revision.
 *
 * The first revision number is the current time in microseconds. Each commit adds one and takes longer than a
 * microsecond, so the numbers stay behind the clock. If a document is deleted and created again, its new numbers are
 * therefore above all old ones. A writer that was suspended before the deletion can link only an old number, which has
 * no effect.
 *
 * @returns false when the document exists. On a file system that ignores case, the existing name may differ in case.
 */
export async function createDocument(
  context: StoreContext,
  target: string,
  data: string,
  { durable }: { durable: boolean },
): Promise<boolean> {
  const until = performance.now() + context.deadlineMs;
  return await writing(target, async () => {
    for (;;) {
      const outcome = await tryCreate(context, target, data);
      if (outcome === "created" && durable) await syncFolder(dirname(target));
      if (outcome !== "swept") return outcome === "created";
      if (performance.now() > until)
        throw busyError(target, "could not be created, because its unfinished folder was always removed");
    }
  });
}

async function tryCreate(context: StoreContext, target: string, data: string): Promise<"created" | "exists" | "swept"> {
  context.ensureRoot();
  makeFolder(dirname(target));
  if (existsSync(target)) return "exists";
  const temp = join(context.root, scratchName("tmp"));
  try {
    mkdirSync(temp, { mode: 0o700 });
    const rev = Date.now() * 1000;
    const bytes = encodeRevision(rev, scratchName("tmp"), data);
    closeQuietly(await writeNewFile(join(temp, revisionName(rev)), bytes));
    await syncFolder(temp);
    await rename(temp, target);
  } catch (error) {
    await discard(temp);
    const code = systemCode(error);
    if (code === "ENOTEMPTY" || code === "EEXIST") return "exists";
    if (code === "ENOENT") return "swept"; // a sweep removed the unfinished folder
    throw error;
  }
  return "created";
}

/** Removes a folder. If that fails, a later sweep removes the rest. */
export async function discard(path: string): Promise<void> {
  await rm(path, { recursive: true, force: true }).catch(() => "swept later");
}

/**
 * Deletes a document with a tombstone: a dangling symbolic link whose name is the next number. Like the `link()` of a
 * commit, this fails if another writer was first. The caller makes the deletion durable.
 *
 * Unlike a commit, a tombstone does not make the previous revision read-only. So the writer of that revision may conclude
 * that its commit failed. That writer then tries again and finds that the document does not exist.
 *
 * @returns false when another writer was first or the folder disappeared. The caller then reads again.
 */
export function raiseTombstone(folder: string, next: number): boolean {
  try {
    symlinkSync("deleted", join(folder, revisionName(next)));
  } catch (error) {
    const code = systemCode(error);
    if (code === "EEXIST" || code === "ENOENT") return false;
    throw error;
  }
  // If this process was suspended, other writers may have committed and pruned this number before. In that case, the
  // tombstone is not the newest revision and has no effect.
  return listFolder(folder)?.revisions[0] === next;
}
