import { randomBytes } from "node:crypto";
import { appendFile, link, mkdir, open, readFile, rename, rm, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { systemCode } from "../../errors.js";
import { failsWith } from "../../store/file/failures.js";
import type { FileSystem } from "../../system/system.js";

/** The types of file systems that only one machine can see. */
const LOCAL_TYPES = /^(?:ext[234]|xfs|btrfs|zfs|tmpfs|ramfs|overlay|f2fs|vfat|exfat|ntfs3?|apfs|hfs)$/;

export function isLocal({ type }: FileSystem): boolean {
  return LOCAL_TYPES.test(type);
}

/**
 * Tests whether the file system of `folder` has the properties that session state depends on. Uses a temporary folder
 * below `folder`.
 *
 * @returns the problems, as ends of the sentence "this file system …"; empty if there are none
 */
export async function problemsOf(folder: string): Promise<string[]> {
  const trial = join(folder, `.copilotfleet-trial-${randomBytes(6).toString("hex")}`);
  await mkdir(trial, { mode: 0o700 });
  try {
    const problems: string[] = [];
    for (const [problem, holds] of Object.entries(TRIALS)) {
      // A trial that throws has also failed, because the file system refused the operation.
      const code = await holds(trial).then(
        (held) => (held ? null : ""),
        (error: unknown) => systemCode(error) ?? String(error),
      );
      if (code !== null) problems.push(code === "" ? problem : `${problem} (${code})`);
    }
    return problems;
  } finally {
    await rm(trial, { recursive: true, force: true });
  }
}

/** Each key describes the problem that exists if its trial fails. Later trials use the files of earlier trials. */
const TRIALS: Readonly<Record<string, (folder: string) => Promise<boolean>>> = {
  "does not replace a file by a rename": async (folder) => {
    const [old, fresh] = [join(folder, "old"), join(folder, "fresh")];
    await writeFile(old, "old");
    await writeFile(fresh, "fresh");
    await rename(fresh, old);
    return (await readFile(old, "utf8")) === "fresh" && (await failsWith(["ENOENT"], () => readFile(fresh)));
  },
  "lets a rename replace a folder that is not empty": async (folder) => {
    const [full, other] = [join(folder, "full"), join(folder, "other")];
    await mkdir(full);
    await writeFile(join(full, "entry"), "");
    await mkdir(other);
    return await failsWith(["ENOTEMPTY", "EEXIST"], () => rename(other, full));
  },
  "lets two processes create the same file": async (folder) => {
    const path = join(folder, "one");
    await writeFile(path, "", { flag: "wx" });
    return await failsWith(["EEXIST"], () => writeFile(path, "", { flag: "wx" }));
  },
  "has no hard links, or lets one replace a file": async (folder) => {
    const [source, target] = [join(folder, "source"), join(folder, "target")];
    await writeFile(source, "linked");
    await link(source, target);
    return (await readFile(target, "utf8")) === "linked" && (await failsWith(["EEXIST"], () => link(source, target)));
  },
  "has no symbolic links": async (folder) => {
    const path = join(folder, "symbolic");
    await symlink("old", path);
    return (await readFile(path, "utf8")) === "fresh";
  },
  "does not append to a file": async (folder) => {
    const path = join(folder, "log");
    await appendFile(path, "one");
    await appendFile(path, "two");
    return (await readFile(path, "utf8")) === "onetwo";
  },
  "does not sync files or folders": async (folder) => {
    for (const path of [join(folder, "log"), folder]) {
      const handle = await open(path, "r");
      await handle.sync().finally(async () => await handle.close());
    }
    return true;
  },
  "treats names that differ only in case as one name": async (folder) =>
    await failsWith(["ENOENT"], () => readFile(join(folder, "LOG"))),
};
