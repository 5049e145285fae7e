import { type FileHandle, link, open, unlink } from "node:fs/promises";
import { basename, join } from "node:path";
import { FleetError, quote, systemCode } from "../../errors.js";
import { closeQuietly, scratchName, syncFolder, unlinkQuietly, writeNewFile } from "./durable.js";
import { type Listing, listFolder } from "./head.js";
import { encodeRevision, revisionName } from "./revision.js";
import { sweepNames } from "./sweep.js";

/*
 * How a document changes. Its folder holds numbered whole copies; `link()` to the next number is the commit, since it
 * fails when the name exists. No lock is needed for that to be right, but a writer may be suspended between any two of
 * its calls, for any time, and two things follow:
 *
 * - Old revisions are pruned, so a sleeper may link a number that was taken, and pruned, long ago. Its link succeeds and
 *   means nothing.
 * - So a writer has to find out afterwards whether it committed. If its number is the highest, it did: the highest
 *   number never goes down, so the number had never been taken before. If there are higher ones, either others built on
 *   it already, or it came too late. The mark tells: whoever builds on a revision first makes that file read-only, on an
 *   open handle, after having seen that it was the highest at a time when the handle was already open. Only a revision
 *   that really was the head once can get the mark, and nothing is ever built on one without it.
 *
 * The mark is a permission bit because it belongs to the file and not to its name, can be set without rewriting
 * anything, and can be read by the sleeper however long ago its file lost its name. (Root is not held back by it, and
 * need not be: it is a message, not a barrier.) It need not survive a power cut: no sleeper does either.
 *
 * Listing a folder is one system call for as few names as there are here, hence a snapshot.
 */

const UNMARKED = 0o600;
const MARKED = 0o400;

/** The points between two steps, at which a test may let other writers pass. */
export type CommitStep = "read" | "checked" | "marked" | "written" | "linked";
export type StepHook = (step: CommitStep) => void | Promise<void>;

export interface Parent {
  /** The revision whose data was changed, or 0 when there was none. */
  rev: number;
  /** The highest number taken in the folder when it was read, or 0. */
  top: number;
  /** The number to take: above `top`. */
  next: number;
}

export interface Commit {
  folder: string;
  parent: Parent;
  data: string;
  /** How many revisions stay. */
  keep: number;
  onStep?: StepHook | undefined;
}

/** @returns false when another writer was first, or the folder went away: read again and retry. */
export async function commitRevision({ folder, parent, data, keep, onStep }: Commit): Promise<boolean> {
  await onStep?.("read");
  if (!(await acceptParent(folder, parent, onStep))) return false;
  await onStep?.("marked");

  const temp = join(folder, scratchName("tmp"));
  const handle = await writeTemp(temp, encodeRevision(parent.next, basename(temp), data));
  if (handle === undefined) return false;
  try {
    await onStep?.("written");
    if (!(await linkIfFree(temp, join(folder, revisionName(parent.next))))) return false;
    await onStep?.("linked");
    if (!(await isCommitted(folder, parent.next, handle))) return false;
  } finally {
    await closeQuietly(handle);
    await unlinkQuietly(temp);
  }
  if (!(await syncIfThere(folder))) return false;
  await prune(folder, parent.next - keep);
  return true;
}

/** Marks the parent, unless it is not the head any more. Without one there is nothing to mark: the link decides. */
async function acceptParent(folder: string, parent: Parent, onStep: StepHook | undefined): Promise<boolean> {
  if (parent.rev === 0) return true;
  const handle = await openIfThere(join(folder, revisionName(parent.rev)));
  if (handle === undefined) return false;
  try {
    // In this order: that the name still stood at the top after the handle was opened proves which file the handle is.
    if (highest(folder) !== parent.top) return false;
    await onStep?.("checked");
    await handle.chmod(MARKED);
    return true;
  } finally {
    await closeQuietly(handle);
  }
}

/** @returns undefined when the folder went away. */
async function writeTemp(path: string, bytes: Buffer): Promise<FileHandle | undefined> {
  let handle: FileHandle;
  try {
    handle = await writeNewFile(path, bytes);
  } catch (error) {
    if (systemCode(error) === "ENOENT") return undefined;
    throw error;
  }
  const mode = (await handle.stat()).mode & 0o777;
  if (mode === UNMARKED) return handle;
  await closeQuietly(handle);
  await unlinkQuietly(path);
  throw new FleetError(
    "FLEET_STATE_UNWRITABLE",
    `${quote(path)} was created with mode 0600 and has 0${mode.toString(8)}: its file system does not keep permissions.`,
    { suggestions: ["Put the state folder (COPILOTFLEET_HOME) on a local file system."] },
  );
}

/** ENOENT: a sweep took the temp file for an orphan, or the folder went away. */
async function linkIfFree(temp: string, target: string): Promise<boolean> {
  try {
    await link(temp, target);
    return true;
  } catch (error) {
    const code = systemCode(error);
    if (code === "EEXIST" || code === "ENOENT") return false;
    throw error;
  }
}

async function isCommitted(folder: string, rev: number, handle: FileHandle): Promise<boolean> {
  if (highest(folder) === rev) return true;
  return ((await handle.stat()).mode & 0o777) === MARKED;
}

/** A record may be deleted right after the commit: trying again then finds out that it is gone. */
async function syncIfThere(folder: string): Promise<boolean> {
  try {
    await syncFolder(folder);
    return true;
  } catch (error) {
    if (systemCode(error) === "ENOENT") return false;
    throw error;
  }
}

function highest(folder: string): number | undefined {
  const listing = listFolder(folder);
  return listing && (listing.revisions[0] ?? 0);
}

/**
 * Removes every number up to `last`, not only the one that fell out of the window: a sleeper may have linked any of
 * them. What cannot be removed now is tried again by the next commit, so a failure here fails nobody's update.
 */
async function prune(folder: string, last: number): Promise<void> {
  let listing: Listing | undefined;
  try {
    listing = listFolder(folder);
  } catch {
    return;
  }
  const old = listing?.revisions.filter((rev) => rev <= last) ?? [];
  await Promise.allSettled(old.map((rev) => unlink(join(folder, revisionName(rev)))));
  await sweepNames(folder, listing?.others ?? []);
}

async function openIfThere(path: string): Promise<FileHandle | undefined> {
  try {
    return await open(path, "r");
  } catch (error) {
    if (systemCode(error) === "ENOENT") return undefined;
    throw error;
  }
}
