import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { ControlGroup } from "../system.js";
import { withoutEscapes } from "./file-systems.js";

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
