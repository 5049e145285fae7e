import { lstatSync, realpathSync } from "node:fs";
import { basename, dirname, isAbsolute, join, resolve } from "node:path";

/**
 * Whether a path that a client named lies in the server's home after all links are resolved. All servers run as the
 * same user of the operating system, so without a sandbox, only this check keeps a server out of other servers' homes.
 */
export function isBelowHome(path: unknown, home: string): boolean {
  // Refuse "..": if a link comes before it, the runtime follows the link first and ends up in another folder.
  if (typeof path !== "string" || path.includes("\0") || !isAbsolute(path) || resolve(path) !== path) return false;
  const real = realPath(path);
  const realHome = realPath(home);
  return real !== null && realHome !== null && (real === realHome || real.startsWith(`${realHome}/`));
}

/** The path with its links resolved. The end of the path need not exist. Null if the path cannot be resolved. */
function realPath(path: string): string | null {
  try {
    return realpathSync(path);
  } catch {
    // Refuse a dangling link, because somebody could create its target, outside of the home, after this check.
    if (dirname(path) === path || isThere(path)) return null;
    const parent = realPath(dirname(path));
    return parent === null ? null : join(parent, basename(path));
  }
}

/** Whether something exists at this path. Also true if that cannot be determined. */
function isThere(path: string): boolean {
  try {
    return lstatSync(path, { throwIfNoEntry: false }) !== undefined;
  } catch {
    return true;
  }
}
