import { realpathSync } from "node:fs";
import { FleetError } from "../../errors.js";
import type { FileSystem, FileSystems } from "../system.js";
import { lines } from "./run.js";

const KERNEL =
  /^(?:proc|procfs|sysfs|cgroup2?|debugfs|tracefs|securityfs|configfs|bpf|devpts|devfs|efivarfs|pstore|selinuxfs|smackfs|binfmt_misc|mqueue|hugetlbfs|autofs)$/;
const NETWORK = /^(?:nfs\d*|smbfs|smb\d*|cifs|afpfs|webdav)$/;

/** Runs `df` for the mount point and `mount` for the type, because the options of `stat` differ between the systems. */
export function posixFiles(platform: NodeJS.Platform): FileSystems {
  function of(path: string): FileSystem {
    const real = realpathSync(path);
    const [, row = ""] = lines(platform, "df", ["-P", real], "file systems");
    const mountPoint = /^.*? +(?:\d+|-) +(?:\d+|-) +(?:-?\d+|-) +(?:\d+%|-) +(\/.*)$/.exec(row)?.[1] ?? "/";
    let found: FileSystem = { type: "unknown", source: "unknown", mountPoint };
    for (const line of lines(platform, "mount", [], "file systems")) {
      // Linux: `source on point type ext4 (rw,…)`. macOS: `source on point (apfs, local, …)`.
      const [, source = "", at = "", type = ""] =
        /^(.*?) on (\/.*) type (\S+) \(.*\)$/.exec(line) ?? /^(.*?) on (\/.*) \(([^ ,)]+).*\)$/.exec(line) ?? [];
      if (at === mountPoint) found = { type, source, mountPoint };
    }
    return found;
  }

  return {
    of,
    unfit(folder) {
      const { type: name } = of(folder);
      if (KERNEL.test(name)) return { kind: "kernel", name };
      return NETWORK.test(name) ? { kind: "network", name } : null;
    },
    pathOf(fd) {
      if (platform === "linux") return `/dev/fd/${fd}`;
      // Node.js has no openat(2). macOS does not look up names below /dev/fd, and turns a path below /.vol into a path that
      // may be a link by the time it is used.
      throw new FleetError(
        "FLEET_PLATFORM_UNSUPPORTED",
        `The fleet cannot read the folders of a server safely on ${platform}.`,
        { suggestions: ["Run it in a Linux container or virtual machine."] },
      );
    },
  };
}
