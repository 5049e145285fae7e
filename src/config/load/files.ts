import { closeSync, constants, fstatSync, openSync, readFileSync, type Stats, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { systemCode } from "../../base/errors.js";
import { printable, shellQuote } from "../../base/values/text.js";
import { findKey } from "../keys.js";
import { unusableFile } from "../problem.js";
import { locateJsonFault } from "./json.js";
import type { Layer } from "./layers.js";

export const PROJECT_FILE = ".copilotfleet.json";
const LARGEST_BYTES = 1024 * 1024;

export function findProjectFile(folder: string): string | null {
  for (let at = folder; ; at = dirname(at)) {
    const path = join(at, PROJECT_FILE);
    if (exists(path)) return path;
    if (dirname(at) === at) return null;
  }
}

/**
 * Reads a configuration file; undefined if it does not exist. Refuses a file that another user could have written,
 * because the file names programs to run, and anybody could put such a file into a shared folder above the working
 * folder, such as /tmp. This function is synchronous, because every command begins by waiting for it.
 */
export function readConfigFile(path: string, uid: number | undefined): { text: string; content: unknown } | undefined {
  if (!exists(path)) return undefined;
  const text = readText(path, uid).replace(/^\uFEFF/, "");
  if (text.trim() === "") {
    throw unusableFile(path, "is empty. Allowed: a JSON object", [
      `Write {} into ${printable(path)}, or remove the file.`,
    ]);
  }
  try {
    return { text, content: JSON.parse(text) as unknown };
  } catch {
    // Do not keep the parser's error as the cause, because it quotes the text around the fault.
    const { line, column, reason } = locateJsonFault(text);
    throw unusableFile(path, `is not JSON at line ${line}, column ${column}: ${reason}. Allowed: plain JSON`, [
      `Correct line ${line} of ${printable(path)}.`,
    ]);
  }
}

function exists(path: string): boolean {
  try {
    return statSync(path, { throwIfNoEntry: false }) !== undefined;
  } catch (error) {
    // The file does not exist for us if we may not search its folder, or if its path cannot exist.
    if (["EACCES", "ENOTDIR", "ENAMETOOLONG", "ELOOP"].includes(systemCode(error) ?? "")) return false;
    throw error;
  }
}

function readText(path: string, uid: number | undefined): string {
  let handle: number;
  try {
    // Without O_NONBLOCK, opening a named pipe would wait for a writer forever.
    handle = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    const reason = `cannot be read: ${systemCode(error) ?? "unknown reason"}`;
    throw unusableFile(path, reason, [`chmod u+r ${shellQuote(printable(path))}`], error);
  }
  try {
    checkFile(path, fstatSync(handle), uid);
    return readFileSync(handle, "utf8");
  } finally {
    closeSync(handle);
  }
}

function checkFile(path: string, stats: Stats, uid: number | undefined): void {
  if (stats.isDirectory())
    throw unusableFile(path, "is a folder, not a regular file. Allowed: a file that contains JSON", [
      `Give the path of a file, such as ${printable(join(path, PROJECT_FILE))}.`,
    ]);
  if (!stats.isFile())
    // Do not suggest moving a device or the like away, because the system may need it there.
    throw unusableFile(path, "is not a regular file. Allowed: a file that contains JSON", [
      "copilotfleet config path # lists the configuration files that are read",
    ]);
  if (stats.size > LARGEST_BYTES)
    throw unusableFile(path, `has ${stats.size} bytes. Allowed: at most ${LARGEST_BYTES}`, [
      `Shorten ${printable(path)}.`,
    ]);
  if (uid !== undefined && stats.uid !== uid && stats.uid !== 0)
    throw unusableFile(path, `belongs to another user (uid ${stats.uid}). Allowed: a file of your own or of root`, [
      "Copy the file, if you trust it, and use the copy.",
    ]);
  if ((stats.mode & 0o002) !== 0)
    throw unusableFile(path, "can be written by everybody. Allowed: a file that only its owner and group can write", [
      `chmod o-w ${shellQuote(printable(path))}`,
    ]);
}

/** The values of a key that need no trust. */
export function valuesWithoutTrust(name: string): "all" | readonly unknown[] {
  return findKey(name)?.rule.untrusted ?? [];
}

/** The keys of a project's file that need the user's trust. */
export function guardedKeys(layer: Layer): string[] {
  const isGuarded = (name: string, value: unknown) => {
    const harmless = valuesWithoutTrust(name);
    return harmless !== "all" && !harmless.includes(value);
  };
  return [...layer].filter(([name, { value }]) => isGuarded(name, value)).map(([name]) => name);
}
