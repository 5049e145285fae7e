import { fchmodSync, fstatSync, linkSync, openSync } from "node:fs";
import { basename, join } from "node:path";
import { FleetError, quote, systemCode } from "../../../errors.js";
import { failsWith, isFull } from "../failures.js";
import { closeQuietly, scratchName, syncFolder, unlinkQuietly, writeNewFile } from "./durable.js";
import { type Listing, listFolder } from "./head.js";
import { encodeRevision, revisionName } from "./revision.js";
import { sweepNames } from "./sweep.js";

/*
 * How a document changes: decision 1 (docs/decisions/0001-commit-by-link.md). In short, a writer makes the file of the
 * newest revision read-only, and then links its own file under the next number. This `link()` is the commit. It counts
 * if the writer's file is then still the newest revision, or if the file is read-only, because in that case another
 * writer accepted it as the newest revision and built on it.
 *
 * The read-only mode thus marks an accepted revision. It belongs to the file and not to its name, so a suspended writer
 * can read it even after another writer has deleted the name. It does not matter that root may write to a read-only
 * file. The mode need not survive a loss of power, because no suspended writer survives that either.
 *
 * A document's folder has so few names that one system call lists them all. So a listing shows a single moment.
 */

const WRITABLE = 0o600;
const READ_ONLY = 0o400;

/** The points between two steps of a commit at which a test may let other writers run. */
export type CommitStep = "read" | "checked" | "accepted" | "written" | "linked";
export type StepHook = (step: CommitStep) => void | Promise<void>;

export interface Parent {
  /** The revision on which the new one builds, or 0 if there is none. */
  rev: number;
  /** The highest revision number in the folder when it was listed, or 0. */
  top: number;
  /** The number for the new revision, which is above `top`. */
  next: number;
}

export interface Commit {
  folder: string;
  parent: Parent;
  data: string;
  keep: number;
  /**
   * Whether the revision must survive a loss of power. If not, only the content of its file is synced to disk, and not its
   * name.
   */
  durable: boolean;
  onStep?: StepHook | undefined;
}

/**
 * Commits a new revision of a document, and removes old revisions.
 *
 * @returns false when another writer was first or the folder disappeared. The caller then reads again and retries.
 */
export async function commitRevision({ folder, parent, data, keep, durable, onStep }: Commit): Promise<boolean> {
  await onStep?.("read");
  if (!(await acceptParent(folder, parent, onStep))) return false;
  await onStep?.("accepted");

  const temp = join(folder, scratchName("tmp"));
  const bytes = encodeRevision(parent.next, basename(temp), data);
  const fd = await writeTemp(temp, bytes).catch(async (error: unknown) => {
    if (!isFull(error)) throw error;
    // On a full disk, delete the older revisions first. They are only there in case that the newest one is damaged.
    await prune(folder, parent.rev - 1);
    return await writeTemp(temp, bytes);
  });
  if (fd === undefined) return false;
  try {
    await onStep?.("written");
    // ENOENT means that a sweep removed the temporary file, or that the folder disappeared.
    const target = join(folder, revisionName(parent.next));
    if (await failsWith(["EEXIST", "ENOENT"], () => linkSync(temp, target))) return false;
    await onStep?.("linked");
    if (!isCommitted(folder, parent.next, fd)) return false;
  } finally {
    closeQuietly(fd);
    unlinkQuietly(temp);
  }
  // ENOENT: the record was deleted right after the commit. The caller tries again and finds no record.
  if (durable && (await failsWith(["ENOENT"], () => syncFolder(folder)))) return false;
  await prune(folder, parent.next - keep);
  return true;
}

/** Makes the parent's file read-only. @returns false if the parent is no longer the head */
async function acceptParent(folder: string, parent: Parent, onStep: StepHook | undefined): Promise<boolean> {
  if (parent.rev === 0) return true; // there is no parent, so the link alone decides
  const fd = await unlessMissing(() => openSync(join(folder, revisionName(parent.rev)), "r"));
  if (fd === undefined) return false;
  try {
    // List the folder only after the parent's file is open. If the highest revision is still the same, the open file is
    // the head.
    if (highest(folder) !== parent.top) return false;
    await onStep?.("checked");
    fchmodSync(fd, READ_ONLY);
    return true;
  } finally {
    closeQuietly(fd);
  }
}

async function writeTemp(path: string, bytes: Buffer): Promise<number | undefined> {
  const fd = await unlessMissing(async () => await writeNewFile(path, bytes));
  if (fd === undefined) return undefined;
  const mode = modeOf(fd);
  if (mode === WRITABLE) return fd;
  closeQuietly(fd);
  unlinkQuietly(path);
  const message = `${quote(path)} was created with mode 0600 but has 0${mode.toString(8)}, because its file system does not keep permissions.`;
  throw new FleetError("FLEET_STATE_UNWRITABLE", message, {
    suggestions: ["Put the state folder (COPILOTFLEET_HOME) on a local file system."],
  });
}

function isCommitted(folder: string, rev: number, fd: number): boolean {
  return highest(folder) === rev || modeOf(fd) === READ_ONLY;
}

function modeOf(fd: number): number {
  return fstatSync(fd).mode & 0o777;
}

function highest(folder: string): number | undefined {
  const listing = listFolder(folder);
  return listing && (listing.revisions[0] ?? 0);
}

/**
 * Removes every revision up to the number `last`. Usually, that is a single revision, but a suspended writer may have
 * linked an old number again. Ignores failures, because the next commit tries again.
 */
async function prune(folder: string, last: number): Promise<void> {
  let listing: Listing | undefined;
  try {
    listing = listFolder(folder);
  } catch {
    return;
  }
  const old = listing?.revisions.filter((rev) => rev <= last) ?? [];
  for (const rev of old) unlinkQuietly(join(folder, revisionName(rev)));
  await sweepNames(folder, listing?.others ?? []);
}

async function unlessMissing(open: () => number | Promise<number>): Promise<number | undefined> {
  try {
    return await open();
  } catch (error) {
    if (systemCode(error) === "ENOENT") return undefined;
    throw error;
  }
}
