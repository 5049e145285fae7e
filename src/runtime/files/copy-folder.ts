import { randomBytes } from "node:crypto";
import { closeSync } from "node:fs";
import { copyFile, mkdir, open, rename, rm, utimes } from "node:fs/promises";
import { dirname, join } from "node:path";
import { type Budget, DEEPEST, HeldFolder, walk } from "../../base/held-folder.js";
import { system } from "../../base/system/system.js";
import { isInUseMark } from "../history/session-state.js";

/** A session with more files and folders is not copied, because only an agent makes that many, and only on purpose. */
const MOST_COPIED = 100_000;
/** Nor is a session with more bytes. */
const MOST_BYTES = 2 * 1024 ** 3;

export function incomingPath(group: string): string {
  return join(group, `.incoming-${randomBytes(6).toString("hex")}`);
}

/** Copies a folder to `name` in `target`, either completely or not at all, and syncs it to disk. */
export async function copyInto(from: string, target: string, name: string): Promise<void> {
  const copy = await copyBeside(from, target);
  await rename(copy, join(target, name));
  await sync(target);
}

/** Copies a folder to a new path beside `target`, on the same file system. Returns that path. */
export async function copyBeside(from: string, target: string): Promise<string> {
  const copy = incomingPath(dirname(target));
  try {
    await copyFolder(from, copy);
    return copy;
  } catch (error) {
    await rm(copy, { recursive: true, force: true });
    throw error;
  }
}

/**
 * Copies files and folders. Leaves out links, pipes and devices, because the user's agent may have put them into
 * `from`.
 */
async function copyFolder(from: string, to: string): Promise<void> {
  using source = HeldFolder.open(from);
  if (source === null) throw new Error(`${from} is not a folder`);
  await copyHeld(source, to, { left: MOST_COPIED }, { left: MOST_BYTES }, 0);
}

async function copyHeld(source: HeldFolder, to: string, budget: Budget, bytes: Budget, depth: number): Promise<void> {
  const { entries, more } = source.entries(Math.max(0, budget.left));
  budget.left -= entries.length;
  if (more || depth > DEEPEST) {
    throw tooLarge(source.realPath);
  }
  await mkdir(to, { mode: 0o700 });
  for (const { name } of entries) {
    const copy = join(to, name);
    const stats = source.lstat(name);
    if (stats?.isDirectory() === true) {
      using child = source.folder(name);
      if (child !== null) await copyHeld(child, copy, budget, bytes, depth + 1);
    } else if (stats?.isFile() === true && !isInUseMark(name)) {
      bytes.left -= stats.size;
      if (bytes.left < 0) throw tooLarge(source.realPath);
      const fd = source.file(name);
      if (fd === null) continue;
      try {
        await copyFile(system().files.pathOf(fd), copy);
      } finally {
        closeSync(fd);
      }
      // Keep the times, because a copy does not count as a use of the session.
      await utimes(copy, stats.atime, stats.mtime);
      await sync(copy);
    }
  }
  await sync(to);
}

function tooLarge(path: string): Error {
  const limit = `more than ${MOST_COPIED} files and folders, or more than ${MOST_BYTES} bytes, or is nested more than ${DEEPEST} folders deep`;
  return new Error(`${path} has ${limit}, so it is not moved`);
}

export function assertCopyable(path: string): void {
  using folder = HeldFolder.open(path);
  if (folder === null) return;
  const budget: Budget = { left: MOST_COPIED };
  let bytes = 0;
  for (const stats of walk(folder, budget)) if (stats.isFile()) bytes += stats.size;
  if (budget.isCut === true || bytes > MOST_BYTES) throw tooLarge(path);
}

export async function sync(path: string): Promise<void> {
  const handle = await open(path, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
