import { link, unlink } from "node:fs/promises";
import { join } from "node:path";
import { revisionName } from "./revision.js";

const QUARANTINED = /^(?:corrupt-\d{16}\.json|registry\.json\.corrupt-.+)$/;

/** Whether the name is that of a quarantined copy. Such a copy shows that there was state once that was unreadable. */
export function isQuarantined(name: string): boolean {
  return QUARANTINED.test(name);
}

/**
 * Keeps damaged revisions for people to examine after their numbers have been pruned. It adds a second name and keeps
 * the first one. If the number became free, a writer that was suspended before the damage could take it, at the same
 * moment as another writer builds on the revision below.
 *
 * The name needs no time stamp, because no number is used twice. A failure to keep a copy must not prevent the repair.
 */
export async function keepEvidence(folder: string, damaged: readonly number[]): Promise<void> {
  const names = damaged.map(revisionName);
  await Promise.allSettled(names.map((name) => link(join(folder, name), join(folder, `corrupt-${name}`))));
}

/** Like {@link keepEvidence}, for a damaged file beside the revisions that is about to be replaced. */
export async function keepCopy(path: string, stillDamaged: (copy: string) => boolean): Promise<void> {
  const copy = `${path}.corrupt-${new Date().toISOString().replaceAll(/[:.]/g, "-")}`;
  try {
    await link(path, copy);
    // If another writer has just repaired the file, this is a copy of an undamaged one.
    if (!stillDamaged(copy)) await unlink(copy);
  } catch {
    // As above, a failure must not prevent the repair.
  }
}
