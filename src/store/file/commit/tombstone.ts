import { symlinkSync } from "node:fs";
import { join } from "node:path";
import { systemCode } from "../../../errors.js";
import { listFolder } from "./head.js";
import { revisionName } from "./revision.js";

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
