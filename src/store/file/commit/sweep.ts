import { readdir, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { systemCode } from "../../../errors.js";

const SCRATCH = /^\.(?:tmp|trash)-(\d+)-[0-9a-f]+$/;

/** No write takes this many milliseconds. So an older file is a left-over, even if the PID in its name is in use. */
const MAX_AGE_MS = 10 * 60_000;

/** Removes the left-overs of killed writers in `folder`. Does nothing if the folder does not exist. */
export async function sweepFolder(folder: string): Promise<void> {
  let names: string[];
  try {
    names = await readdir(folder);
  } catch {
    return; // the next sweep tries again
  }
  await sweepNames(folder, names);
}

/**
 * Like {@link sweepFolder}, for names that the caller has listed. It may remove the file of a live writer, for example of a
 * writer in another PID namespace. That writer then cannot link its file, and tries again.
 */
export async function sweepNames(folder: string, names: readonly string[]): Promise<void> {
  for (const name of names) {
    const pid = SCRATCH.exec(name)?.[1];
    if (pid === undefined) continue;
    const path = join(folder, name);
    if (isAlive(Number(pid)) && !(await isOld(path))) continue;
    await rm(path, { recursive: true, force: true }).catch(() => "left for the next sweep");
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return systemCode(error) !== "ESRCH";
  }
}

async function isOld(path: string): Promise<boolean> {
  try {
    return (await stat(path)).mtimeMs < Date.now() - MAX_AGE_MS;
  } catch {
    return false;
  }
}
