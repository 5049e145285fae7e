import { readdir, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { systemCode } from "../../errors.js";

const SCRATCH = /^\.(?:tmp|trash)-(\d+)-[0-9a-f]+$/;

/** No write takes this long; only a PID that was given to somebody else keeps a left-over alive until then. */
const MAX_AGE_MS = 10 * 60_000;

/** Removes what killed writers left in `folder`. A folder that is not there has nothing to sweep. */
export async function sweepFolder(folder: string): Promise<void> {
  let names: string[];
  try {
    names = await readdir(folder);
  } catch {
    // Sweeping is housekeeping: what cannot be listed now is left for the next time.
    return;
  }
  await sweepNames(folder, names);
}

/**
 * The same for names already listed. It may err on a live writer (another PID namespace, a clock that jumped): that one
 * finds its file gone and tries again, since only the link decides.
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
