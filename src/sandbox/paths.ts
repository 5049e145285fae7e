import { existsSync, readdirSync, realpathSync } from "node:fs";
import { homedir } from "node:os";
import { basename, dirname, join, sep } from "node:path";
import { systemCode } from "../base/errors.js";

/** Everything in the file system that a sandboxed program can reach. Only `named` has paths with links. */
export interface Paths {
  /** Files and folders that the program can read and execute. */
  read: readonly string[];
  /** Folders in which the program can change everything. */
  write: readonly string[];
  devices: readonly string[];
  /** The paths under which programs look for these files and folders. Some lead through links. */
  named: readonly string[];
  /** The folder for temporary files, or null. */
  temporary: string | null;
}

/** The paths for a trial of a sandbox, in which everything can be read. */
export const TRIAL_PATHS: Paths = { read: ["/"], write: [], devices: ["/dev/null"], named: [], temporary: null };

/**
 * The parts of the system that programs need: programs, libraries, certificates, and the facts about the machine below
 * `/proc` and `/sys`. Only parts of `/etc` are listed, because it contains secrets, such as keys of other services.
 */
const SYSTEM = `
  /usr /bin /sbin /lib /lib32 /lib64 /libx32 /opt /nix/store /gnu/store
  /etc/alternatives /etc/bash.bashrc /etc/ca-certificates /etc/crypto-policies /etc/debian_version /etc/environment
  /etc/fonts /etc/gai.conf /etc/gitconfig /etc/group /etc/host.conf /etc/hostname /etc/hosts /etc/inputrc /etc/java
  /etc/ld.so.cache /etc/ld.so.conf /etc/ld.so.conf.d /etc/ld.so.preload /etc/locale.conf /etc/localtime /etc/machine-id
  /etc/magic /etc/mime.types /etc/nsswitch.conf /etc/os-release /etc/passwd /etc/pki/ca-trust /etc/pki/tls/certs
  /etc/profile /etc/profile.d /etc/protocols /etc/python3 /etc/resolv.conf /etc/services /etc/shells /etc/ssl/certs
  /etc/ssl/openssl.cnf /etc/terminfo /etc/timezone /etc/xdg
  /run/systemd/resolve /run/resolvconf
  /proc /sys/devices/system /sys/fs/cgroup /sys/kernel/mm`
  .trim()
  .split(/\s+/);

/** The devices. `/dev/pts` is left out, because it has all terminals of the account. */
const DEVICES = "null zero full random urandom tty".split(" ").map((name) => `/dev/${name}`);

export interface PathsOptions {
  /**
   * Folders that the server must not reach, except for the folders in `own`, which may be inside them. Their paths have
   * no links.
   */
  hidden: readonly string[];
  runtimePath: string;
  /** The folders of the server itself. */
  own: readonly string[];
  /** The folder in `own` for temporary files. */
  temporary?: string;
  /** Further paths as they were given, perhaps through links. */
  named?: readonly string[];
  /**
   * Further paths, without links. They are not resolved again, because an agent may have replaced one with a link after
   * the fleet had checked it.
   */
  read: readonly string[];
  write: readonly string[];
}

/**
 * The paths that a server can reach. A sandbox can only allow all of a folder, without exceptions. So instead of a
 * system folder that contains a hidden folder, the result has the other entries of the system folder.
 */
export function serverPaths({ hidden, runtimePath, own, read, write, ...options }: PathsOptions): Paths {
  // The runtime loads further files from the folder of its program. One of them, runtime.node, may be a link to another
  // folder. If the program's folder contains the home of this account, the server must not reach all of it, so it gets
  // only the program and runtime.node.
  const folder = dirname(runtimePath);
  const isHome = contains(folder, homedir());
  const programs = [...(isHome ? [] : [folder]), runtimePath, join(folder, "runtime.node")];
  const wide = reals([...SYSTEM, ...programs]);
  return {
    read: [...new Set([...wide.flatMap((path) => without(path, hidden)), ...read.filter((path) => existsSync(path))])],
    write: [...reals(own), ...write.filter((path) => existsSync(path))],
    devices: reals(DEVICES),
    named: [...SYSTEM, ...programs, ...own, ...(options.named ?? [])],
    temporary: options.temporary === undefined ? null : realPath(options.temporary),
  };
}

/**
 * The path itself if it contains no hidden folder. Otherwise, the entries below it that contain none; empty if the path
 * is in a hidden folder.
 */
function without(path: string, hidden: readonly string[]): string[] {
  if (hidden.some((secret) => contains(secret, path))) return [];
  if (!hidden.some((secret) => contains(path, secret))) return [path];
  return entriesOf(path).flatMap((name) => reals([join(path, name)]).flatMap((entry) => without(entry, hidden)));
}

function entriesOf(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch (error) {
    if (["ENOENT", "ENOTDIR", "EACCES"].includes(systemCode(error) ?? "")) return [];
    throw error;
  }
}

/** Whether `path` is `folder` or below it. */
export function contains(folder: string, path: string): boolean {
  return path === folder || path.startsWith(folder.endsWith(sep) ? folder : `${folder}${sep}`);
}

/** The path with all links resolved, as far as it exists. */
export function realPath(path: string): string {
  const [real] = reals([path]);
  if (real !== undefined) return real;
  const parent = dirname(path);
  return parent === path ? path : join(realPath(parent), basename(path));
}

/** The paths with all links resolved. Leaves out paths that do not exist or that this process cannot reach. */
export function reals(paths: readonly string[]): string[] {
  const found = paths.map((path) => {
    try {
      return realpathSync(path);
    } catch (error) {
      if (["ENOENT", "ENOTDIR", "EACCES", "ELOOP"].includes(systemCode(error) ?? "")) return null;
      throw error;
    }
  });
  return [...new Set(found.filter((path) => path !== null))];
}
