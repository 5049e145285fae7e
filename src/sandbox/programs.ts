import { accessSync, constants, existsSync, lstatSync } from "node:fs";
import { createRequire } from "node:module";
import { delimiter, dirname, isAbsolute, join, sep } from "node:path";
import { FleetError, quote, systemCode } from "../base/errors.js";
import { shellQuote } from "../base/values/text.js";
import { contains, realPath } from "./paths.js";

/** The folder of this package; null if another package contains a copy of this code. */
export function packageFolder(): string | null {
  try {
    return dirname(createRequire(import.meta.url).resolve("copilotfleet/package.json"));
  } catch {
    return null;
  }
}

/** The path of a file of `native/` for this processor. Null if this code is a copy inside another package. */
export function nativeFile(name: string): string | null {
  const root = packageFolder();
  return root === null ? null : join(root, "native", `linux-${process.arch}`, name);
}

/** The path of the library that makes a runtime send without Nagle's delay. Null if it cannot be loaded here. */
export function noDelayLibrary(): string | null {
  const path = nativeFile("copilotfleet-nodelay.so");
  // LD_PRELOAD is a list that both of these characters separate.
  return path === null || /[ :]/.test(path) || !existsSync(path) ? null : path;
}

/** Programs, libraries and settings of the machine. No server may change anything in these folders. */
export const OF_THE_MACHINE =
  "/bin /boot /dev /etc /gnu /lib /lib32 /lib64 /libx32 /nix /proc /sbin /sys /usr /var/spool".split(" ");
/** The folders of {@link OF_THE_MACHINE} in which only root installs programs. */
const OF_PROGRAMS = "/bin /gnu /nix /sbin /usr".split(" ");
/**
 * Folders that contain the folders of many programs. A server may change a folder in one of them, but not all of it.
 */
const OF_MANY = ["/opt", "/run", "/var"];

/**
 * The path of a program that makes a sandbox; null if it is not found. Looks only in folders of PATH that belong to the
 * machine, because an agent may have put a program into another folder, such as a project's `node_modules/.bin`.
 *
 * @throws FLEET_SANDBOX_UNUSABLE if the program belongs to this account, which may not run it, because an agent may
 * have caused that to get a weaker sandbox
 */
export function machineProgram(name: string): string | null {
  const named = (process.env.PATH ?? "/usr/bin:/bin").split(delimiter).filter(isAbsolute).map(realPath);
  const folders = named.filter((folder) => OF_PROGRAMS.some((one) => contains(one, folder)));
  const paths = folders.map((folder) => join(folder, name));
  const found = paths.find((path) => accessProblem(path) === null);
  const locked = paths.find((path) => accessProblem(path) === "EACCES" && isOwn(path));
  if (found === undefined && locked !== undefined) throw unusable(locked, "this account may not run it");
  return found ?? null;
}

/** Whether a file exists and belongs to this account, so that an agent may have changed its mode. */
function isOwn(path: string): boolean {
  try {
    return lstatSync(path).uid === process.getuid?.();
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
    return false;
  }
}

/** The code of the system error that keeps this account from running a program; null if it may run it. */
function accessProblem(path: string): string | null {
  try {
    accessSync(path, constants.X_OK);
    return null;
  } catch (error) {
    const code = systemCode(error);
    if (code === undefined) throw error;
    return code;
  }
}

/** The error for a program of the sandbox that exists and does not run. */
export function unusable(program: string, why: string): FleetError {
  return new FleetError("FLEET_SANDBOX_UNUSABLE", `${quote(program)}, which makes the sandbox, cannot run: ${why}.`, {
    suggestions: [
      `chmod 755 ${shellQuote(program)}`,
      "If that does not help, install it again, on a file system that allows programs.",
    ],
  });
}

/** Programs that run outside of the sandbox. No server may change them. The paths have no links. */
export interface Programs {
  /** A server may change neither these folders nor anything in them. */
  folders: readonly string[];
  /** A server may change neither these files and folders, nor any folder above them. */
  paths: readonly string[];
}

/** The programs of the machine and of the fleet: its code with all its packages, Node.js, and the Copilot program. */
export function programsOf(runtimePath: string): Programs {
  const own = packageFolder();
  const code = own === null ? [] : [own, packagesAround(own)].filter((path) => path !== null);
  const folders = [...OF_THE_MACHINE, ...code].map(realPath);
  return { folders, paths: [...folders, ...[...OF_MANY, process.execPath, runtimePath].map(realPath)] };
}

/** The `node_modules` that contains this package and the packages that it needs; null in a checkout. */
function packagesAround(folder: string): string | null {
  const name = `${sep}node_modules${sep}`;
  const at = folder.indexOf(name);
  return at === -1 ? null : join(folder.slice(0, at), "node_modules");
}
