import { symlinkSync } from "node:fs";
import { join } from "node:path";
import { systemCode } from "../../errors.js";
import { listFolder } from "./head.js";
import { revisionName } from "./revision.js";

/**
 * Ends a document by taking the next number for a link to nowhere: like the `link()` of a commit it fails when somebody
 * else was first, and it is whole at once, for the price of one name. It need not survive a power cut: the deletion was
 * not acknowledged then.
 *
 * Unlike a commit it does not mark the revision before it. Who made that, and finds the tombstone when looking whether it
 * stood, tries again and is told that there is no such document, which is true.
 *
 * @returns false when another writer was first, or the folder went away: read again.
 */
export function raiseTombstone(folder: string, next: number): boolean {
  try {
    symlinkSync("deleted", join(folder, revisionName(next)));
  } catch (error) {
    const code = systemCode(error);
    if (code === "EEXIST" || code === "ENOENT") return false;
    throw error;
  }
  // After a suspension the number may be one that was taken, and pruned, long ago: then it means nothing.
  return listFolder(folder)?.revisions[0] === next;
}
