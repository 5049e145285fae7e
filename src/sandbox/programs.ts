import { createRequire } from "node:module";
import { dirname, join, sep } from "node:path";
import { realPath } from "./paths.js";

/** The folder of this package; null if another package contains a copy of this code. */
export function packageFolder(): string | null {
  try {
    return dirname(createRequire(import.meta.url).resolve("copilotfleet/package.json"));
  } catch {
    return null;
  }
}

/** Programs, libraries and settings of the machine. No server may change anything in these folders. */
export const OF_THE_MACHINE =
  "/bin /boot /dev /etc /gnu /lib /lib32 /lib64 /libx32 /nix /proc /sbin /sys /usr /var/spool".split(" ");
/** These contain folders of many programs. A server may change one folder in them, but not the whole. */
const OF_MANY = ["/opt", "/run", "/var"];

/** Programs that run outside of the sandbox, so that no server must be able to change them. The paths have no links. */
export interface Programs {
  /** Neither these folders nor anything in them. */
  folders: readonly string[];
  /** These files and folders, and every folder above them. */
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
