import { lstatSync, realpathSync } from "node:fs";
import { basename, dirname, isAbsolute, join, resolve } from "node:path";

/**
 * Whether a path that a client named lies in the home, wherever links lead. All servers run as one user of the operating
 * system, so nothing else keeps a server out of the homes of others.
 */
export function isBelowHome(path: unknown, home: string): boolean {
  // The runtime follows a link before it goes up from it: a path with ".." in it is not what it reads like.
  if (typeof path !== "string" || path.includes("\0") || !isAbsolute(path) || resolve(path) !== path) return false;
  const real = realPath(path);
  const realHome = realPath(home);
  return real !== null && realHome !== null && (real === realHome || real.startsWith(`${realHome}/`));
}

/** The path without links, of which the end need not exist; null if it cannot be followed. */
function realPath(path: string): string | null {
  try {
    return realpathSync(path);
  } catch {
    // A link that leads nowhere would be followed once somebody makes what it names.
    if (dirname(path) === path || isThere(path)) return null;
    const parent = realPath(dirname(path));
    return parent === null ? null : join(parent, basename(path));
  }
}

/** Whether there is anything of this name, or whether that cannot be seen. */
function isThere(path: string): boolean {
  try {
    return lstatSync(path, { throwIfNoEntry: false }) !== undefined;
  } catch {
    return true;
  }
}
