import { join } from "node:path";
import { quote } from "../../../errors.js";
import { revisionName } from "./revision.js";

interface Damaged {
  rev: number;
  reason: string;
}

/** Describes the damaged revisions of a document, which are always its newest, and names the file of the newest one. */
export function describeDamage(what: string, folder: string, damaged: readonly Damaged[]): string {
  const [newest] = damaged;
  if (newest === undefined) return `all revisions of ${what} are missing from ${quote(folder)}`;
  const which = damaged.length === 1 ? "the newest revision" : `the newest ${damaged.length} revisions`;
  const file = quote(join(folder, revisionName(newest.rev)));
  return `${which} of ${what} ${damaged.length === 1 ? "is" : "are"} damaged (${newest.reason}: ${file})`;
}

/** The advice at the end of each warning. `doctor` omits it. */
export const DAMAGE_ADVICE = "Check the disk, then run: copilotfleet doctor --fix";

/** A warning about damage that the fleet works around. It names the damage, the consequence and the remedy. */
export function damageWarning(damage: string, consequence: string): string {
  const sentence = `${damage.charAt(0).toUpperCase()}${damage.slice(1)}`;
  return `${sentence}. ${consequence} ${DAMAGE_ADVICE}`;
}
