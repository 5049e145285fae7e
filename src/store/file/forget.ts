import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { isQuarantined } from "./commit/damage.js";
import { unlinkQuietly } from "./commit/durable.js";
import { listFolder } from "./commit/head.js";
import { revisionName } from "./commit/revision.js";
import { readIfThere } from "./failures.js";

/**
 * Removes files of earlier states that contain one of the texts: older revisions of documents, scratch files, and
 * copies of damaged files. The newest revision of each document stays.
 *
 * @param folders the folders of the documents
 */
export function forgetOlder(root: string, folders: readonly string[], texts: readonly string[]): void {
  for (const folder of folders) {
    const listing = listFolder(folder);
    const older = listing?.revisions.slice(1).map(revisionName) ?? [];
    forget(folder, [...older, ...(listing?.others ?? [])], texts);
  }
  const names = readIfThere(root, () => readdirSync(root)) ?? [];
  forget(root, names.filter(isQuarantined), texts);
}

function forget(folder: string, names: readonly string[], texts: readonly string[]): void {
  for (const name of names) {
    const path = join(folder, name);
    const bytes = readIfThere(path, () => readFileSync(path));
    if (bytes !== undefined && texts.some((text) => bytes.includes(text))) unlinkQuietly(path);
  }
}
