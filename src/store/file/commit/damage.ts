import { link, unlink } from "node:fs/promises";
import { join } from "node:path";
import { quote } from "../../../errors.js";
import { revisionName } from "./revision.js";

interface Damaged {
  rev: number;
  reason: string;
}

/** Describes the damaged revisions of a document, which are always its newest. */
export function describeDamage(what: string, folder: string, damaged: readonly Damaged[]): string {
  const [newest] = damaged;
  if (newest === undefined) return `all revisions of ${what} are missing from ${quote(folder)}`;
  const which = damaged.length === 1 ? "the newest revision" : `the newest ${damaged.length} revisions`;
  const file = quote(join(folder, revisionName(newest.rev)));
  return `${which} of ${what} ${damaged.length === 1 ? "is" : "are"} damaged (${newest.reason}: ${file})`;
}

/** The advice at the end of each warning. `doctor` omits it. */
export const DAMAGE_ADVICE = "Check the disk, then run: copilotfleet doctor --fix";

export function damageWarning(damage: string, consequence: string): string {
  const sentence = `${damage.charAt(0).toUpperCase()}${damage.slice(1)}`;
  return `${sentence}. ${consequence} ${DAMAGE_ADVICE}`;
}

const QUARANTINED = /^(?:corrupt-\d{16}\.json|registry\.json\.corrupt-.+)$/;

/**
 * Whether a name is that of a kept copy of a damaged file. Such a copy shows that there was state once, and that it was
 * unreadable.
 */
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
