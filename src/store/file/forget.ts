import { lstatSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { isQuarantined } from "./commit/damage.js";
import { unlinkQuietly } from "./commit/durable.js";
import { listFolder } from "./commit/head.js";
import { decodeRevision, revisionName } from "./commit/revision.js";
import { readIfThere } from "./failures.js";

/**
 * Removes outdated files that contain one of `texts`: older revisions of documents, scratch files, and copies of
 * damaged files. Each document keeps its newest revision. It also keeps its newest intact revision, because readers
 * use that one while the newest is damaged.
 *
 * @param folders the folders of the documents
 */
export function forgetOlder(root: string, folders: readonly string[], texts: readonly string[]): void {
  for (const folder of folders) {
    const listing = listFolder(folder);
    const { revisions, others } = listing ?? { revisions: [], others: [] };
    const [newest] = revisions;
    const intact = revisions.find((rev) => isIntact(folder, rev));
    const older = revisions.filter((rev) => rev !== newest && rev !== intact);
    forget(folder, [...older.map(revisionName), ...others], texts);
  }
  const names = readIfThere(root, () => readdirSync(root)) ?? [];
  forget(root, names.filter(isQuarantined), texts);
}

function isIntact(folder: string, rev: number): boolean {
  const path = join(folder, revisionName(rev));
  // The tombstone of a deleted document is a link.
  if (lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink() === true) return true;
  const bytes = readIfThere(path, () => readFileSync(path));
  return bytes !== undefined && decodeRevision(bytes, rev).kind !== "damaged";
}

function forget(folder: string, names: readonly string[], texts: readonly string[]): void {
  for (const name of names) {
    const path = join(folder, name);
    const bytes = readIfThere(path, () => readFileSync(path));
    if (bytes !== undefined && texts.some((text) => bytes.includes(text))) unlinkQuietly(path);
  }
}
