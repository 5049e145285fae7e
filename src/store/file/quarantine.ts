import { link, unlink } from "node:fs/promises";
import { join } from "node:path";
import { revisionName } from "./revision.js";

const QUARANTINED = /^(?:corrupt-\d{16}\.json|registry\.json\.corrupt-.+)$/;

/** Whether a name shows that there was state once, which was not readable. */
export function isQuarantined(name: string): boolean {
  return QUARANTINED.test(name);
}

/**
 * Keeps damaged revisions for people to look at, beyond the time at which their numbers are pruned. It adds a second
 * name and leaves the first one in place: a number that became free again could be taken by a writer that was suspended
 * since before the damage, at the same moment as another one builds on the revision below.
 *
 * The name needs no time stamp, since no number is used twice. Failing to keep a copy must not keep the state from being
 * repaired.
 */
export async function keepEvidence(folder: string, damaged: readonly number[]): Promise<void> {
  const names = damaged.map(revisionName);
  await Promise.allSettled(names.map((name) => link(join(folder, name), join(folder, `corrupt-${name}`))));
}

/** The same for a damaged file beside the revisions that is about to be replaced. */
export async function keepCopy(path: string, stillDamaged: (copy: string) => boolean): Promise<void> {
  const copy = `${path}.corrupt-${new Date().toISOString().replaceAll(/[:.]/g, "-")}`;
  try {
    await link(path, copy);
    // Another writer may have mended it in between; then this is a copy of a good one.
    if (!stillDamaged(copy)) await unlink(copy);
  } catch {
    // As above: the repair goes first.
  }
}
