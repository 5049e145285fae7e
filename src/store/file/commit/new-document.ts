import { existsSync, mkdirSync } from "node:fs";
import { rename, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { systemCode } from "../../../errors.js";
import type { StoreContext } from "../context.js";
import { busyError, mediumError } from "../failures.js";
import { closeQuietly, makeFolder, scratchName, syncFolder, writeNewFile } from "./durable.js";
import { encodeRevision, revisionName } from "./revision.js";

/**
 * Creates a document's folder. One rename makes it appear with its first revision. Numbers start at the time in
 * microseconds and not at 1, and no writer commits that fast. So if a writer was suspended while the document was
 * deleted and created again, it can link only a number below those of the new document, where it has no effect.
 *
 * @returns false when the document exists. On a file system that ignores case, this includes a name that differs only
 * in case.
 */
export async function createDocument(context: StoreContext, target: string, data: string): Promise<boolean> {
  const until = performance.now() + context.deadlineMs;
  try {
    for (;;) {
      const outcome = await tryCreate(context, target, data);
      if (outcome !== "swept") return outcome === "created";
      if (performance.now() > until)
        throw busyError(target, "could not be created, because its unfinished folder was always removed");
    }
  } catch (error) {
    throw mediumError("write", target, error);
  }
}

/** `swept` means that a sweep took the unfinished folder for an orphan. */
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

/** Removes a folder. If that fails, a later sweep removes the rest. */
export async function discard(path: string): Promise<void> {
  await rm(path, { recursive: true, force: true }).catch(() => "swept later");
}
