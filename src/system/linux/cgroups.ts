import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { ControlGroup } from "../system.js";
import { withoutEscapes } from "./file-systems.js";

/** The control groups of this process, from `/proc/self/cgroup` (cgroups(7)) and `/proc/self/mountinfo` (proc(5)). */
export function ownControlGroups(): ControlGroup[] {
  const memberships = readFileSync("/proc/self/cgroup", "utf8").trim().split("\n").map(readMembership);
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

/** The path of a group below the folder that is mounted. Null if the group is not there, as in some containers. */
function pathBelow(root: string, path: string): string | null {
  const folder = root.endsWith("/") ? root : `${root}/`;
  return `${path}/`.startsWith(folder) ? path.slice(folder.length) : null;
}
