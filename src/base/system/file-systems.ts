import { readFileSync, realpathSync, statfsSync } from "node:fs";
import { join } from "node:path";
import type { ControlGroup, FileSystem, UnfitFileSystem } from "./system.js";

export const linuxFiles = {
  of,
  unfit,
  /**
   * The path of an open folder or file. An entry below it belongs to that very folder, even if somebody has replaced
   * the folder's own path with a link.
   */
  pathOf: (fd: number) => `/proc/self/fd/${fd}`,
};

/** The file system of a path, from `/proc/self/mountinfo` (proc(5)). */
function of(path: string): FileSystem {
  const real = realpathSync(path);
  let found: FileSystem = { type: "unknown", source: "unknown", mountPoint: "/" };
  for (const line of readFileSync("/proc/self/mountinfo", "utf8").split("\n")) {
    // A hyphen ends the optional fields: `… <mount point> <options> [<optional>…] - <type> <source> <options>`.
    const [before = "", after = ""] = line.split(" - ");
    const mountPoint = withoutEscapes(before.split(" ")[4] ?? "");
    const [type = "", source = ""] = after.split(" ");
    const holds = mountPoint === "/" || real === mountPoint || real.startsWith(`${mountPoint}/`);
    // If two file systems are mounted at one place, the later one covers the earlier one.
    if (mountPoint !== "" && holds && mountPoint.length >= found.mountPoint.length) {
      found = { type, source: withoutEscapes(source), mountPoint };
    }
  }
  return found;
}

/** Decodes the octal numbers that stand for spaces and similar characters in `mountinfo`. */
function withoutEscapes(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)));
}

/** File systems that several hosts share. Numbers: statfs(2). */
const NETWORK: ReadonlyMap<number, string> = new Map([
  [0x6969, "NFS"],
  [0x517b, "SMB"],
  [0xff534d42, "CIFS"],
  [0xfe534d42, "SMB2"],
]);

/** The kernel's own file systems. On procfs, Node's recursive `mkdir` never returns. Numbers: linux/magic.h. */
const KERNEL: ReadonlyMap<number, string> = new Map([
  [0x9fa0, "proc"],
  [0x62656572, "sysfs"],
  [0x27e0eb, "cgroup"],
  [0x63677270, "cgroup2"],
]);

/**
 * Why the folder's file system cannot contain the state. Null if it can, or is unknown. Uses the type number of
 * statfs(2) and does not read `mountinfo`, because every command calls this function, and `mountinfo` may be long.
 */
function unfit(folder: string): UnfitFileSystem | null {
  return unfitType(statfsSync(folder).type);
}

export function unfitType(type: number): UnfitFileSystem | null {
  const kernel = KERNEL.get(type >>> 0);
  if (kernel !== undefined) return { kind: "kernel", name: kernel };
  const network = NETWORK.get(type >>> 0);
  return network === undefined ? null : { kind: "network", name: network };
}

/**
 * The control groups of the process `pid`, from `/proc/<pid>/cgroup` (cgroups(7)) and `/proc/self/mountinfo` (proc(5)).
 * The paths in both files are relative to the cgroup namespace of the process that reads them.
 */
export function controlGroupsOf(pid: number | "self"): ControlGroup[] {
  const memberships = readFileSync(`/proc/${pid}/cgroup`, "utf8").trim().split("\n").map(readMembership);
  return readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .flatMap((line) => {
      const [before = "", after = ""] = line.split(" - ");
      const [, , , root = "", mountPoint = ""] = before.split(" ").map(withoutEscapes);
      const [type, , options = ""] = after.split(" ");
      if (type !== "cgroup" && type !== "cgroup2") return [];
      const mounted = options.split(",");
      const own = memberships.find(({ isUnified, controllers }) =>
        type === "cgroup2" ? isUnified : !isUnified && controllers.every((name) => mounted.includes(name)),
      );
      const below = own === undefined ? null : pathBelow(root, own.path);
      if (own === undefined || below === null) return [];
      const version = type === "cgroup2" ? 2 : 1;
      return [{ version, controllers: own.controllers, mountPoint, folder: join(mountPoint, below) }];
    });
}

/** A line such as `4:cpu,cpuacct:/path`, or `0::/path` for version 2. */
function readMembership(line: string) {
  const [, id, names = "", path = "/"] = /^(\d+):([^:]*):(.*)$/s.exec(line) ?? [];
  return { isUnified: id === "0", controllers: names === "" ? [] : names.split(","), path };
}

/**
 * The path of a group below the mounted folder. Null if the group is not below it, as in some containers. The path of a
 * group outside of the cgroup namespace begins with "/..".
 */
function pathBelow(root: string, path: string): string | null {
  const folder = root.endsWith("/") ? root : `${root}/`;
  const below = `${path}/`.startsWith(folder) ? path.slice(folder.length) : "..";
  return below.split("/").includes("..") ? null : below;
}
