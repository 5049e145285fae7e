import { chmod, lstat, readdir } from "node:fs/promises";
import { join } from "node:path";
import { shellQuote } from "../../config/values/text.js";
import { ifThereLater } from "../../runtime/files/if-there.js";
import { adviceForOwner } from "../../store/file/state-folder.js";
import { type Finding, failed, ok, type Row, warning } from "./checks.js";
import type { SettingsContext } from "./settings.js";

export interface StateContext extends SettingsContext {
  fix: boolean;
}

/** How many files to check. More would take long, and the first files usually show a mistake already. */
const MOST_FILES = 20_000;
/** Agents write below these folders. The check does not enter them, because the fleet reads as little there as it can. */
const OF_AGENTS = new Set(["home", "session-state"]);

/** Checks that the files of the state belong to the fleet's account, and that no other account can read them. */
export const PERMISSIONS: Row<StateContext> = { name: "permissions", look: stateIsPrivate };

async function stateIsPrivate({ stateRoot, fix }: StateContext): Promise<Finding> {
  const root = await ifThereLater(async () => await lstat(stateRoot));
  if (root === null) return ok("nothing is stored so far");
  const foreign = await foreignFiles(stateRoot);
  if (foreign.length > 0) {
    const uid = process.getuid?.();
    const detail = `files of the state that belong to another user, perhaps because somebody ran a command with sudo: ${foreign.length}`;
    const [ofOwner] = adviceForOwner(stateRoot, root);
    // Never take the state from its owner.
    return {
      ...failed(detail, root.uid === uid ? `sudo chown -R ${uid} ${shellQuote(stateRoot)}` : ofOwner),
      items: foreign,
    };
  }
  // If only its owner may enter the state folder, nobody else can reach the files in it, whatever their modes.
  if ((root.mode & 0o077) === 0) return ok("only this account can read the state");
  const mode = (root.mode & 0o777).toString(8).padStart(4, "0");
  const open = `other users may read the state folder (mode ${mode}), which shows the ids of users and sessions`;
  if (!fix) return warning(open, `chmod go-rwx ${shellQuote(stateRoot)}`);
  await chmod(stateRoot, root.mode & 0o700);
  return { level: "ok", detail: `${open}; it is private again`, fixed: true };
}

/** The paths of the state's files that belong to somebody else. */
async function foreignFiles(stateRoot: string): Promise<string[]> {
  const uid = process.getuid?.();
  const foreign: string[] = [];
  const folders = [stateRoot];
  let seen = 0;
  for (let folder = folders.pop(); folder !== undefined && seen < MOST_FILES; folder = folders.pop()) {
    const at = folder;
    for (const entry of (await ifThereLater(async () => await readdir(at, { withFileTypes: true }))) ?? []) {
      const path = join(at, entry.name);
      const stats = await ifThereLater(async () => await lstat(path)); // null: deleted since the listing
      seen += 1;
      if (stats === null) continue;
      if (stats.uid !== uid) foreign.push(path);
      else if (entry.isDirectory() && !OF_AGENTS.has(entry.name)) folders.push(path);
    }
  }
  return foreign;
}
