import { readdirSync, readFileSync, statSync } from "node:fs";
import { join, relative } from "node:path";
import { serverIdOf } from "../../model/ids.js";
import { ifThere } from "../../runtime/files/if-there.js";
import { HOME } from "../../runtime/files/server-folder.js";
import type { Remain } from "./purge.js";

const MOST_FILES = 20_000;
const LARGEST = 16 * 1024 ** 2;
/**
 * Not searched: the record of the purge, which stays until the last host is done, and what the agents of other users can
 * write, which are their homes and the sessions of the shared servers.
 */
const SKIPPED = new Set(["purges", HOME, "session-state"]);

/** The files in the state folder that still name the user, for the result of the purge. */
export function stillNamed(stateRoot: string, host: string | null, user: string): Remain[] {
  const texts = [JSON.stringify(user), serverIdOf(user)];
  const found: string[] = [];
  let left = MOST_FILES;
  const visit = (folder: string) => {
    for (const entry of ifThere(() => readdirSync(folder, { withFileTypes: true })) ?? []) {
      if (left-- <= 0) return;
      const path = join(folder, entry.name);
      if (entry.isDirectory() && !SKIPPED.has(entry.name)) visit(path);
      else if (entry.isFile() && isNaming(path, texts)) found.push(path);
    }
  };
  visit(stateRoot);
  return found.map((path) => ({
    host,
    what: `the file ${relative(stateRoot, path)} in the state folder`,
    why: "It names the user. The fleet does not know whose file it is.",
  }));
}

function isNaming(path: string, texts: readonly string[]): boolean {
  const size = statSync(path, { throwIfNoEntry: false })?.size ?? 0;
  const bytes = size > 0 && size <= LARGEST ? ifThere(() => readFileSync(path)) : null;
  return bytes !== null && texts.some((text) => bytes.includes(text));
}
