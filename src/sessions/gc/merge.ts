import { randomBytes } from "node:crypto";
import { closeSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import type { HeldFolder } from "../../runtime/files/held-folder.js";
import { HISTORY } from "../../runtime/history/session-state.js";

const MOST_MERGED = 10_000;
const DEEPEST_MERGED = 32;

/**
 * Merges the moved folder of a session into the one that a runtime has made since. If both have a file, the newer one stays,
 * except for the history: the new history is appended to the old one. The user's agent can write both folders, so this
 * reads only regular files.
 */
export function mergeInto(target: HeldFolder, source: HeldFolder, depth = 0): void {
  for (const entry of source.entries(MOST_MERGED).entries) {
    const { name } = entry;
    if (target.lstat(name) === undefined) renameSync(source.at(name), target.at(name));
    else if (entry.isDirectory() && depth < DEEPEST_MERGED) {
      using into = target.folder(name);
      using from = source.folder(name);
      if (into !== null && from !== null) mergeInto(into, from, depth + 1);
    } else if (name === HISTORY) prepend(target, source);
  }
}

function prepend(target: HeldFolder, source: HeldFolder): void {
  const [before, after] = [readHistory(source), readHistory(target)];
  if (before === null || after === null) return;
  const whole = `${HISTORY}.${randomBytes(6).toString("hex")}`;
  writeFileSync(source.at(whole), Buffer.concat([before, after]), { mode: 0o600, flag: "wx" });
  renameSync(source.at(whole), target.at(HISTORY));
}

/** Null if the history is not a regular file. */
function readHistory(folder: HeldFolder): Buffer | null {
  if (folder.lstat(HISTORY)?.isFile() !== true) return null;
  const fd = folder.file(HISTORY);
  if (fd === null) return null;
  try {
    return readFileSync(fd);
  } finally {
    closeSync(fd);
  }
}
