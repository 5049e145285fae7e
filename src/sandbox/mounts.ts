import { readlinkSync } from "node:fs";
import { dirname, join, sep } from "node:path";
import { systemCode } from "../errors.js";
import { contains, type Paths } from "./paths.js";

/** The longest chain of links that the kernel follows: path_resolution(7). */
const MOST_LINKS = 40;

/** Links in /dev that programs expect, in addition to the devices. */
const BESIDE_DEVICES = ["/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr"];

/**
 * The bwrap options that build the file system of a sandbox. It starts empty, and everything in it has the same path as
 * outside. So if a path leads through a link, the sandbox needs that link, too.
 */
export function mountOptions(paths: Paths): string[] {
  const mounts = mountsOf(paths);
  const places = ["/proc", ...mounts.keys()];
  const isMounted = (path: string) => places.some((place) => contains(place, path));
  const links = linksAlong([...paths.named, ...BESIDE_DEVICES]).filter(([link]) => !isMounted(link));
  // Mount the server's temporary folder at /tmp, because otherwise files in /tmp would use up memory. Do not do this if
  // something else is mounted below /tmp: bwrap would have to make that mount point in the temporary folder, where the
  // agent could have put links.
  const isTmpFree = ![...places, ...links.map(([link]) => link)].some((place) => contains("/tmp", place));
  return [
    ...[...mounts].flatMap(([path, option]) => [option, path, path]),
    ...links.flatMap(([link, target]) => ["--symlink", target, link]),
    ...(isTmpFree && paths.temporary !== null ? ["--bind", paths.temporary, "/tmp"] : []),
    ...["--proc", "/proc", "--remount-ro", "/"],
  ];
}

/** The mount option for each path. A folder comes before everything below it, because bwrap mounts in this order. */
function mountsOf({ read, write, devices }: Paths): Map<string, string> {
  const below = (path: string, folders: readonly string[]) =>
    folders.some((folder) => folder !== path && contains(folder, path));
  const options = new Map([
    ...read
      .filter((path) => !contains("/proc", path) && !below(path, [...read, ...write]))
      .map((path) => [path, "--ro-bind-try"] as const),
    // Leave out a path below another writable folder, because the mount of that folder includes the path.
    ...write.filter((path) => !below(path, write)).map((path) => [path, "--bind-try"] as const),
    ...devices.map((path) => [path, "--dev-bind-try"] as const),
  ]);
  return new Map([...options].sort(([a], [b]) => (a < b ? -1 : 1)));
}

/** Every link that the paths lead through, with its target. */
function linksAlong(paths: readonly string[]): [link: string, target: string][] {
  const links = new Map<string, string>();
  for (const path of paths) {
    let at = "/";
    const names = path.split(sep);
    for (let followed = 0; names.length > 0 && followed <= MOST_LINKS; ) {
      const next = join(at, names.shift() ?? "");
      const target = targetOf(next);
      if (target === null) {
        at = next;
        continue;
      }
      links.set(next, target);
      followed++;
      names.unshift(...target.split(sep));
      at = target.startsWith(sep) ? "/" : dirname(next);
    }
  }
  return [...links];
}

/** The target of a link. Null if there is no link at this path, or if this process cannot reach the path. */
function targetOf(path: string): string | null {
  try {
    return readlinkSync(path);
  } catch (error) {
    if (["EINVAL", "ENOENT", "ENOTDIR", "EACCES"].includes(systemCode(error) ?? "")) return null;
    throw error;
  }
}
