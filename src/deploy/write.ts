import { chmod, mkdir, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { systemCode } from "../errors.js";
import { badFlag } from "./problem.js";
import type { UnitFile } from "./systemd.js";

/** Writes files below a folder, at the paths that they have on the system. Replaces existing files. */
export async function writeFiles(folder: string, files: readonly UnitFile[]): Promise<string[]> {
  const written: string[] = [];
  for (const { path, mode, content } of files) {
    const target = join(folder, path);
    try {
      await mkdir(dirname(target), { recursive: true });
      await writeFile(target, content);
      await chmod(target, Number.parseInt(mode, 8)); // independent of the umask
    } catch (error) {
      const code = systemCode(error);
      if (code === undefined) throw error;
      throw badFlag("output", folder, `a writable folder. ${target} cannot be written (${code})`);
    }
    written.push(target);
  }
  return written;
}
