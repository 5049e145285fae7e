import { fsync, openSync, readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { systemCode } from "../../../errors.js";
import { closeQuietly, makeFolder, scratchName, syncFolder, unlinkQuietly, writeWhole } from "../commit/durable.js";
import { readIfThere } from "../failures.js";
import type { LogFiles } from "./files.js";

const syncToDisk = promisify(fsync);

/** A file of the log that was made from other files of the log. */
export interface Derived {
  path: string;
  text: string;
}

/**
 * Makes a file of the log from other files of the log. Creates the scratch file before `make` reads these files. So
 * once {@link dropDerived} has deleted all scratch files, no process can put lines that it read earlier back into the
 * log.
 *
 * @param make reads the other files; returns undefined if they are gone
 * @param place links or renames the scratch file to its path
 * @returns whether the file is in its place
 */
export async function derive(
  files: LogFiles,
  { make, place }: { make: () => Derived | undefined; place: (scratch: string, path: string) => void },
): Promise<boolean> {
  makeFolder(files.segments);
  const scratch = join(files.segments, scratchName("tmp"));
  const fd = openSync(scratch, "wx", 0o600);
  try {
    const derived = make();
    if (derived === undefined) return false;
    writeWhole(fd, Buffer.from(derived.text));
    await syncToDisk(fd);
    place(scratch, derived.path);
    await syncFolder(dirname(derived.path));
    return true;
  } catch (error) {
    if (systemCode(error) === "ENOENT") return false;
    throw error;
  } finally {
    closeQuietly(fd);
    unlinkQuietly(scratch);
  }
}

/** Cancels every {@link derive} that is under way in any process. Also removes scratch files of killed processes. */
export function dropDerived({ segments }: LogFiles): void {
  for (const name of readIfThere(segments, () => readdirSync(segments)) ?? [])
    if (name.startsWith(".tmp-")) unlinkQuietly(join(segments, name));
}
