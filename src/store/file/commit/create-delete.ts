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
 * Creates a document's folder. One rename makes it appear with its first revision.
 *
 * Revision numbers begin at the present time in microseconds and grow by one with each commit, so they stay behind the
 * clock. A document that is deleted and created again begins above all numbers of the old one. So a writer that was
 * suspended in between can link only an old number, which has no effect.
 *
 * @returns false when the document exists. On a file system that ignores case, this includes a name that differs only
 * in case.
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
    await closeQuietly(await writeNewFile(join(temp, revisionName(rev)), bytes));
    await syncFolder(temp);
    await rename(temp, target);
  } catch (error) {
    await discard(temp);
    const code = systemCode(error);
    if (code === "ENOTEMPTY" || code === "EEXIST") return "exists";
    if (code === "ENOENT") return "swept"; // a sweep took the unfinished folder for an orphan
    throw error;
  }
  return "created";
}

/** Removes a folder. If that fails, a later sweep removes the rest. */
export async function discard(path: string): Promise<void> {
  await rm(path, { recursive: true, force: true }).catch(() => "swept later");
}

/**
 * Deletes a document by taking the next number with a symbolic link to nowhere. Like the `link()` of a commit, this
 * fails if another writer was first. The tombstone is complete at once and costs only one name. It need not survive a
 * power cut, because the deletion has not been acknowledged by then.
 *
 * Unlike a commit, it does not make the previous revision read-only. The writer of that revision may find the tombstone
 * when it checks whether it committed. It then tries again and learns that the document does not exist, which is true.
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
  // After a suspension, the number may be one that was taken and pruned long ago. Then the tombstone has no effect.
  return listFolder(folder)?.revisions[0] === next;
}
