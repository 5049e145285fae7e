import { randomBytes } from "node:crypto";
import {
  chmodSync,
  closeSync,
  constants,
  type Dirent,
  fstatSync,
  lstatSync,
  opendirSync,
  openSync,
  readlinkSync,
  renameSync,
  type Stats,
} from "node:fs";
import { type FileHandle, open, opendir, rename, rmdir, unlink } from "node:fs/promises";
import { systemCode } from "./errors.js";
import { ifThereLater } from "./if-there.js";
import { O_PATH, system } from "./system/system.js";

/*
 * The functions in this file read and delete files below a server's home. There, the user's agent may make links,
 * pipes, devices and very many folders, and may replace a folder with a link at any moment. So we open each folder
 * without following links, and reach everything in it through its descriptor. Every walk has a limit.
 */

const NOT_THERE = new Set(["ENOENT", "ENOTDIR", "ELOOP", "ENAMETOOLONG"]);
const FOLDER = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;
/** The rights of an owner to read a folder, and to change it. */
const TO_READ = 0o500;
const TO_CHANGE = 0o700;
/** The maximum depth of a walk. A limit is necessary, because a walk has one descriptor open for each level. */
export const DEEPEST = 64;
const READ_AT_ONCE = 1_000;

export interface Budget {
  /** How many more entries may be handled. */
  left: number;
  /** Set if that was not enough. */
  isCut?: boolean;
}

/** The path of an entry of an open folder. "" means the folder itself. */
function through(fd: number, name: string): string {
  const path = system().files.pathOf(fd);
  return name === "" ? path : `${path}/${name}`;
}

/**
 * Gives this account its rights to a folder back. The user's agent can remove them, and then nobody but root could read
 * or delete the folder. Does not follow a link. If this fails, the next use of the folder throws the error.
 */
export function regain(path: string, rights = TO_CHANGE): void {
  let fd: number | undefined;
  try {
    // Opening with O_PATH needs no right to the folder itself.
    fd = openSync(path, O_PATH | FOLDER);
    grant(fd, rights);
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
  } finally {
    if (fd !== undefined) closeSync(fd);
  }
}

function grant(fd: number, rights: number): void {
  const { mode } = fstatSync(fd);
  if ((mode & rights) !== rights) chmodSync(through(fd, ""), (mode & 0o7777) | rights);
}

/** An open folder. It stays the same folder, whatever happens to its path. */
export class HeldFolder implements Disposable {
  readonly #fd: number;

  private constructor(fd: number) {
    this.#fd = fd;
  }

  /** Opens a folder. Null if the path does not exist, or is a link or a file. */
  static open(path: string, flags = FOLDER): HeldFolder | null {
    try {
      return new HeldFolder(openSync(path, flags));
    } catch (error) {
      if (NOT_THERE.has(systemCode(error) ?? "")) return null;
      throw error;
    }
  }

  /** Like {@link open}, but follows links. Check the {@link realPath} of the result before you use the folder. */
  static follow(path: string): HeldFolder | null {
    return HeldFolder.open(path, FOLDER & ~constants.O_NOFOLLOW);
  }

  get realPath(): string {
    return readlinkSync(this.at(""));
  }

  /** The path of an entry through the descriptor. "" means the folder itself. */
  at(name: string): string {
    return through(this.#fd, name);
  }

  /**
   * Opens a folder in this folder. Null if it does not exist, if it is a link or a file, or if it belongs to another
   * account that does not let us read it.
   */
  folder(name: string): HeldFolder | null {
    regain(this.at(name), TO_READ);
    try {
      return HeldFolder.open(this.at(name));
    } catch (error) {
      if (systemCode(error) === "EACCES") return null;
      throw error;
    }
  }

  /** Gives this account the right to remove entries of this folder back. See {@link regain}. */
  regain(): void {
    grant(this.#fd, TO_CHANGE);
  }

  /** Moves a folder in this folder to another path on the same disk. Both folders must be changeable for this. */
  moveOut(name: string, to: string): void {
    this.regain();
    regain(this.at(name));
    renameSync(this.at(name), to);
  }

  /**
   * Opens a regular file and returns its descriptor. Returns null if the file does not exist. Throws a system error for
   * anything else, such as `ELOOP` for a link and `EINVAL` for a pipe.
   */
  file(name: string): number | null {
    let fd: number;
    try {
      // Without O_NONBLOCK, opening a pipe would wait for a writer.
      fd = openSync(this.at(name), constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    } catch (error) {
      const code = systemCode(error);
      if (code === "ENOENT" || code === "ENOTDIR") return null;
      throw error;
    }
    if (fstatSync(fd).isFile()) return fd;
    closeSync(fd);
    throw Object.assign(new Error(`${name} is not a file`), { code: "EINVAL" });
  }

  lstat(name: string): Stats | undefined {
    return lstatSync(this.at(name), { throwIfNoEntry: false });
  }

  get stats(): Stats {
    return fstatSync(this.#fd);
  }

  entries(most: number): { entries: Dirent[]; more: boolean } {
    const entries: Dirent[] = [];
    const folder = opendirSync(this.at(""), { bufferSize: 512 });
    try {
      for (let entry = folder.readSync(); entry !== null; entry = folder.readSync()) {
        if (entries.length === most) return { entries, more: true };
        entries.push(entry);
      }
      return { entries, more: false };
    } finally {
      folder.closeSync();
    }
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }
}

/**
 * Yields the facts about everything in the folder and its subfolders that is not a folder. Sets `isCut` if the budget
 * ran out or a folder was too deep.
 */
export function* walk(folder: HeldFolder, budget: Budget, depth = 0): Generator<Stats, void> {
  const { entries, more } = folder.entries(Math.max(0, budget.left));
  budget.left -= entries.length;
  if (more) budget.isCut = true;
  for (const entry of entries) {
    const stats = entry.isDirectory() ? undefined : folder.lstat(entry.name);
    if (stats !== undefined) yield stats;
  }
  for (const entry of entries) {
    if (!entry.isDirectory()) continue;
    if (budget.left <= 0 || depth === DEEPEST) {
      budget.isCut = true;
      return;
    }
    using child = folder.folder(entry.name);
    if (child !== null) yield* walk(child, budget, depth + 1);
  }
}

/**
 * Removes a folder and everything in it, without following links, whatever rights its folders have. Pass only a folder
 * whose parent nobody but the fleet can write to. Returns false if the budget ran out first.
 */
export async function removeTree(path: string, budget: Budget): Promise<boolean> {
  regain(path);
  const top = await open(path, FOLDER);
  try {
    if (!(await empty(top, top, budget, 0))) return false;
  } finally {
    await top.close();
  }
  await rmdir(path);
  return true;
}

/** Removes a folder, even if an agent may still write in it. */
export async function removeIfThere(path: string): Promise<void> {
  await ifThereLater(async () => await removeTree(path, { left: Number.POSITIVE_INFINITY }));
}

async function empty(folder: FileHandle, top: FileHandle, budget: Budget, depth: number): Promise<boolean> {
  const at = (name: string) => through(folder.fd, name);
  // Repeat until the folder is empty, because a list may lack entries if the folder changes while we read it.
  for (;;) {
    const entries = await readSome(at(""));
    if (entries.length === 0) return true;
    for (const { name, isFolder } of entries) {
      if (budget.left <= 0) return false;
      budget.left -= 1;
      if (isFolder) regain(at(name));
      if (!isFolder) await unlink(at(name));
      else if (depth === DEEPEST) {
        // A folder at the depth limit moves up into the top folder, which is then listed again.
        await rename(at(name), through(top.fd, `.deep-${randomBytes(6).toString("hex")}`));
      } else {
        const child = await open(at(name), FOLDER);
        try {
          if (!(await empty(child, top, budget, depth + 1))) return false;
        } finally {
          await child.close();
        }
        await rmdir(at(name));
      }
    }
  }
}

async function readSome(path: string): Promise<{ name: string; isFolder: boolean }[]> {
  const found: { name: string; isFolder: boolean }[] = [];
  const folder = await opendir(path, { bufferSize: READ_AT_ONCE });
  for await (const entry of folder) {
    found.push({ name: entry.name, isFolder: entry.isDirectory() });
    if (found.length === READ_AT_ONCE) break;
  }
  return found;
}
