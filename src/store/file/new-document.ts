import { existsSync, mkdirSync } from "node:fs";
import { rename, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { systemCode } from "../../errors.js";
import type { StoreContext } from "./context.js";
import { closeQuietly, makeFolder, scratchName, syncFolder, writeNewFile } from "./durable.js";
import { busyError, mediumError } from "./failures.js";
import { encodeRevision, revisionName } from "./revision.js";

/**
 * Makes a document's folder. It appears under its name by one rename, with the first revision in it. Numbers start at the
 * time, in units that no writer can keep up with, and not at 1: so a writer that was suspended while the document was
 * deleted and created again can link only a number below those of the new one, where it counts for nothing.
 *
 * @returns false when there is one already, also one whose name differs in case only, where the file system takes the two
 * for one.
 */
export async function createDocument(context: StoreContext, target: string, data: string): Promise<boolean> {
  const until = performance.now() + context.deadlineMs;
  try {
    for (;;) {
      const outcome = await tryCreate(context, target, data);
      if (outcome !== "swept") return outcome === "created";
      if (performance.now() > until)
        throw busyError(target, "could not be created: what was half made was always swept");
    }
  } catch (error) {
    throw mediumError("write", target, error);
  }
}

/** `swept`: a sweep took the half-made folder for an orphan. */
async function tryCreate(context: StoreContext, target: string, data: string): Promise<"created" | "exists" | "swept"> {
  context.ensureRoot();
  makeFolder(dirname(target));
  if (existsSync(target)) return "exists";
  const temp = join(context.root, scratchName("tmp"));
  try {
    mkdirSync(temp, { mode: 0o700 });
    const rev = Date.now() * 1000;
    const bytes = encodeRevision(rev, scratchName("tmp"), data);
    await closeQuietly(await writeNewFile(join(temp, revisionName(rev)), bytes));
    await syncFolder(temp);
    await rename(temp, target);
  } catch (error) {
    await discard(temp);
    const code = systemCode(error);
    if (code === "ENOTEMPTY" || code === "EEXIST") return "exists";
    if (code === "ENOENT") return "swept";
    throw error;
  }
  await syncFolder(dirname(target));
  return "created";
}

/** Removes a folder. What stays behind is swept later. */
export async function discard(path: string): Promise<void> {
  await rm(path, { recursive: true, force: true }).catch(() => "swept later");
}
