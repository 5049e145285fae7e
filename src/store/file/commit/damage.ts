import { link, unlink } from "node:fs/promises";
import { join } from "node:path";
import { quote } from "../../../errors.js";
import { revisionName } from "./revision.js";

interface Damaged {
  rev: number;
  reason: string;
}

/** The part of a message that names a document's damaged revisions, which are always its newest ones. */
export function describeDamage(what: string, folder: string, damaged: readonly Damaged[]): string {
  const [newest] = damaged;
  if (newest === undefined) return `all revisions of ${what} are missing from ${quote(folder)}`;
  const which = damaged.length === 1 ? "the newest revision" : `the newest ${damaged.length} revisions`;
  const file = quote(join(folder, revisionName(newest.rev)));
  return `${which} of ${what} ${damaged.length === 1 ? "is" : "are"} damaged (${newest.reason}: ${file})`;
}

/** The advice at the end of each warning about damage. `doctor` removes it before it shows the warning. */
export const DAMAGE_ADVICE = "Check the disk, then run: copilotfleet doctor --fix";

export function damageWarning(damage: string, consequence: string): string {
  const sentence = `${damage.charAt(0).toUpperCase()}${damage.slice(1)}`;
  return `${sentence}. ${consequence} ${DAMAGE_ADVICE}`;
}

const QUARANTINED = /^(?:corrupt-\d{16}\.json|registry\.json\.corrupt-.+)$/;

/** Whether `keepEvidence` or `keepCopy` gave a file this name. Such a file proves that the folder once had state. */
export function isQuarantined(name: string): boolean {
  return QUARANTINED.test(name);
}

/**
 * Gives damaged revisions a second name, so that people can still examine them after their numbers have been pruned. The
 * numbered name stays, because a suspended writer could otherwise take the number. Ignores failures.
 */
export async function keepEvidence(folder: string, damaged: readonly number[]): Promise<void> {
  const names = damaged.map(revisionName);
  await Promise.allSettled(names.map((name) => link(join(folder, name), join(folder, `corrupt-${name}`))));
}

/** Like {@link keepEvidence}, for a damaged `registry.json`. Call it before that file is replaced. */
export async function keepCopy(path: string, stillDamaged: (copy: string) => boolean): Promise<void> {
  const copy = `${path}.corrupt-${new Date().toISOString().replaceAll(/[:.]/g, "-")}`;
  try {
    await link(path, copy);
    // If another writer has just repaired the file, the copy is not damaged and not needed.
    if (!stillDamaged(copy)) await unlink(copy);
  } catch {
    // A failure must not prevent the repair.
  }
}
