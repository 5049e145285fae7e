import {
  existsSync,
  fchmodSync,
  fstatSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  symlinkSync,
} from "node:fs";
import { link, readdir, rename, rm, stat, unlink } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { FleetError, quote, systemCode } from "../../base/errors.js";
import { SCHEMA } from "../../base/server.js";
import { isObject, parseObject, sha256 } from "../../base/values/text.js";
import { busyError, newerError } from "../failures.js";
import { type Base as AnyBase, UpdateQueue } from "../update-queue.js";
import { closeQuietly, makeFolder, scratchName, syncFolder, unlinkQuietly, writeNewFile } from "./durable.js";
import { failsWith, isFull, mediumError, readIfThere, type StoreContext, writing } from "./failures.js";

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

export interface Listing {
  /** Highest first. */
  revisions: number[];
  /** All other names: scratch files of writers, and kept copies of damaged files. */
  others: string[];
}

export interface Head {
  /** The newest undamaged revision, or 0. */
  rev: number;
  /** The data of the revision `rev`, or undefined when `rev` is 0. */
  data: string | undefined;
  /** The highest number in the folder, including damaged revisions, or 0. */
  top: number;
  /** The damaged revisions, which are all above `rev`. */
  damaged: { rev: number; reason: string }[];
  /** As in {@link Listing}. */
  others: string[];
}

/** The data of a deleted document. Its newest revision is a tombstone: see `raiseTombstone`. */
export const TOMBSTONE = "null";

/** How often {@link readHead} lists the folder before it gives up. A listed file may disappear before it is read. */
const MAX_ATTEMPTS = 100;

/** The names in a document's folder; undefined if the folder does not exist. */
export function listFolder(folder: string): Listing | undefined {
  const names = readIfThere(folder, () => readdirSync(folder));
  if (names === undefined) return undefined;
  const listing: Listing = { revisions: [], others: [] };
  for (const name of names) {
    const rev = revisionNumber(name);
    if (rev === undefined) listing.others.push(name);
    else listing.revisions.push(rev);
  }
  listing.revisions.sort((a, b) => b - a);
  return listing;
}

/**
 * Finds the newest undamaged revision among the newest `keep` numbers. It ignores lower numbers: a suspended writer may
 * have linked such a number after it was pruned, and the revision was then never the head.
 *
 * @returns undefined when the folder does not exist
 */
export function readHead(folder: string, keep: number): Head | undefined {
  for (let attempt = 0; attempt < MAX_ATTEMPTS; attempt++) {
    const listing = listFolder(folder);
    if (listing === undefined) return undefined;
    const head = newestWhole(folder, listing, keep);
    if (head !== "moved") return head;
  }
  throw busyError(folder, "could not be read: it changed during every attempt");
}

function newestWhole(folder: string, { revisions, others }: Listing, keep: number): Head | "moved" {
  const top = revisions[0] ?? 0;
  const damaged: Head["damaged"] = [];
  for (const rev of revisions) {
    if (rev <= top - keep) break;
    const path = join(folder, revisionName(rev));
    const bytes = readIfThere(path, () => readFileSync(path));
    const isTombstone = bytes === undefined && lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink() === true;
    if (isTombstone) return { rev, data: TOMBSTONE, top, damaged, others };
    // The revision was pruned after the listing because there is a newer one, or the whole folder was removed.
    if (bytes === undefined) return "moved";
    const decoded = decodeRevision(bytes, rev);
    if (decoded.kind === "newer") throw newerError(path, decoded.schema);
    if (decoded.kind === "good") return { rev, data: decoded.data, top, damaged, others };
    damaged.push({ rev, reason: decoded.reason });
  }
  return { rev: 0, data: undefined, top, damaged, others };
}

/**
 * A file or folder is remembered only if its last change is at least this many milliseconds ago. The kernel's clock for
 * files may advance only every 10 ms, so two changes in quick succession may get the same time. Some file systems, such
 * as ext3, record only whole seconds. `SETTLED_SECONDS_MS` is for these.
 */
const SETTLED_MS = 100;
const SETTLED_SECONDS_MS = 2_100;
const MOST = 1_000;

/** The parts of a document's state that decide whether it may be kept in memory. */
type Read = Pick<Head, "rev" | "top"> & { damaged: readonly unknown[] };

interface Known<T> {
  /** The state of the document's folder: inode, change time and size, from `stateOf`. */
  folder: string;
  /** The state of the newest revision's file, in the same form. */
  file: string;
  path: string;
  /** The path of the revision that the next commit or deletion creates. */
  next: string;
  head: T;
}

/**
 * Keeps the newest revisions of documents in memory, because every turn reads several. A remembered revision is still the
 * newest if the document's folder has not changed and does not contain the next revision. The check for the next revision
 * finds commits even if the folder's time is still the same. A check of the revision's file detects damage to it.
 */
export class HeadMemory<T extends Read> {
  readonly #stateOf: typeof stateOf;
  readonly #known = new Map<string, Known<T>>();

  /** @param look reads the state of a file or folder; tests replace it */
  constructor(look: typeof stateOf = stateOf) {
    this.#stateOf = look;
  }

  /** Returns what `load` returned for this folder, and calls it only if the document may have changed. */
  read<U extends T | null>(folder: string, load: () => U): T | U {
    const state = this.#stateOf(folder);
    const known = this.#known.get(folder);
    if (known?.folder === state && known.file === this.#stateOf(known.path) && !existsSync(known.next))
      return known.head;
    this.#known.delete(folder);
    const head = load();
    // Do not remember a damaged document, because each read must report the damage. If the folder changes after `state`
    // was read, its state differs at the next read, and the memory is not used.
    if (state === null || head === null || head.damaged.length > 0 || head.rev !== head.top) return head;
    const path = join(folder, revisionName(head.rev));
    const file = this.#stateOf(path);
    if (file === null) return head;
    const [oldest] = this.#known.keys();
    if (this.#known.size >= MOST && oldest !== undefined) this.#known.delete(oldest);
    this.#known.set(folder, { folder: state, file, path, next: join(folder, revisionName(head.rev + 1)), head });
    return head;
  }
}

/**
 * The state of a file or folder. Null if it does not exist, or if it changed so recently that another change could go
 * unnoticed.
 */
function stateOf(path: string): string | null {
  const stats = readIfThere(path, () => lstatSync(path, { throwIfNoEntry: false }));
  if (stats === undefined) return null;
  const settledMs = stats.ctimeMs % 1_000 === 0 ? SETTLED_SECONDS_MS : SETTLED_MS;
  if (Date.now() - stats.ctimeMs < settledMs) return null;
  return `${stats.ino} ${stats.ctimeMs} ${stats.size}`;
}

const NAME = /^(\d{16})\.json$/;
const NEWLINE = 0x0a;

export type Decoded =
  | { kind: "good"; data: string }
  | { kind: "damaged"; reason: string }
  | { kind: "newer"; schema: number };

export function revisionName(rev: number): string {
  return `${String(rev).padStart(16, "0")}.json`;
}

/** The number in the file name of a revision; undefined for any other file name. */
export function revisionNumber(name: string): number | undefined {
  const digits = NAME.exec(name)?.[1];
  return digits === undefined ? undefined : Number(digits);
}

/**
 * A revision has two lines: a header with a checksum of the data, and the data. `commit` in the header is only for people.
 */
export function encodeRevision(rev: number, commit: string, data: string): Buffer {
  return Buffer.from(`${JSON.stringify({ schema: SCHEMA, rev, commit, sha256: sha256(data) })}\n${data}\n`);
}

export function decodeRevision(bytes: Buffer, rev: number): Decoded {
  if (bytes.length === 0) return { kind: "damaged", reason: "it is empty" };
  const headerEnd = bytes.indexOf(NEWLINE);
  if (headerEnd === -1) return { kind: "damaged", reason: "it is cut short" };
  const header = parseObject(bytes.toString("utf8", 0, headerEnd));
  // Check the schema before anything else, because a newer version may compute the checksum differently.
  if (typeof header?.schema === "number" && header.schema > SCHEMA) return { kind: "newer", schema: header.schema };
  if (header?.schema !== SCHEMA) return { kind: "damaged", reason: "its header is not readable" };
  if (header.rev !== rev) return { kind: "damaged", reason: "its header belongs to another revision" };
  if (bytes[bytes.length - 1] !== NEWLINE) return { kind: "damaged", reason: "it is cut short" };
  const data = bytes.subarray(headerEnd + 1, -1);
  if (header.sha256 !== sha256(data)) return { kind: "damaged", reason: "its checksum does not match" };
  return { kind: "good", data: data.toString("utf8") };
}

/*
 * `registry.json`: a copy of the newest registry, formatted for people and scripts. The fleet uses it only if the
 * newest revisions are damaged or missing. A writer that was suspended may replace a newer copy with an old one. That
 * writer then finds the newer revision and copies it again. If the writer is killed before that, the next commit writes
 * a new copy.
 */

const MAX_ROUNDS = 3;

export type Published =
  | { kind: "missing" }
  | { kind: "good"; rev: number; data: string }
  | { kind: "damaged"; reason: string };

export function publishedPath(root: string): string {
  return join(root, "registry.json");
}

export function readPublished(path: string): Published {
  const bytes = readIfThere(path, () => readFileSync(path));
  if (bytes === undefined) return { kind: "missing" };
  if (bytes.length === 0) return { kind: "damaged", reason: "it is empty" };
  const parsed = parseObject(bytes.toString("utf8"));
  if (parsed === undefined) return { kind: "damaged", reason: "it is not valid JSON" };
  const { schema, rev, ...registry } = parsed;
  if (typeof schema === "number" && schema > SCHEMA) throw newerError(path, schema);
  if (schema !== SCHEMA || typeof rev !== "number" || !Number.isSafeInteger(rev) || !hasServers(registry)) {
    return { kind: "damaged", reason: "it does not have the shape of a registry" };
  }
  return { kind: "good", rev, data: JSON.stringify(registry) };
}

/**
 * Whether the copy has the shape of a registry. This check is stricter than that of a revision, because people may edit
 * this file.
 */
function hasServers({ servers }: Record<string, unknown>): boolean {
  if (!isObject(servers)) return false;
  return Object.entries(servers).every(([id, server]) => isObject(server) && server.id === id);
}

interface Revision {
  rev: number;
  data: string;
}

/**
 * Writes the revision `first` to `registry.json`. If a newer revision exists afterwards, writes that one, too, because
 * this process may have overwritten a newer copy. The rounds are limited, because new revisions may keep coming, and
 * their writers also write copies.
 */
export async function publish(
  root: string,
  first: Revision,
  newerThan: (rev: number) => Revision | undefined,
): Promise<void> {
  let next: Revision | undefined = first;
  for (let round = 0; round < MAX_ROUNDS && next !== undefined; round++) {
    await replaceCopy(root, next);
    next = newerThan(next.rev);
  }
}

async function replaceCopy(root: string, { rev, data }: Revision): Promise<void> {
  const path = publishedPath(root);
  const temp = join(root, scratchName("tmp"));
  const text = JSON.stringify({ schema: SCHEMA, rev, ...(JSON.parse(data) as object) }, null, 2);
  closeQuietly(await writeNewFile(temp, Buffer.from(`${text}\n`)));
  try {
    if (isDamaged(path)) await keepCopy(path, isDamaged);
    await rename(temp, path);
  } catch (error) {
    unlinkQuietly(temp);
    throw error;
  }
}

function isDamaged(path: string): boolean {
  return readPublished(path).kind === "damaged";
}

/** The newest state of a document. It is the parent of the next revision. */
export interface Base extends Parent, AnyBase {
  /** Unreadable revisions above `rev`. */
  damaged: readonly number[];
}

/** The properties that differ between kinds of documents. */
export interface DocumentSpec<T> extends Pick<Commit, "folder" | "durable"> {
  /** How many revisions to keep. At least 2, because a damaged head needs a revision to fall back to. */
  readonly keep: number;
  readonly parse: (data: string) => T;
  /** Runs before each attempt. Checks the state folder, and may create missing folders. */
  prepare(): void;
  /** Reads the newest state. Throws if the document does not exist or is unreadable. */
  load(): Base;
  /** See `UpdateTries.enter`. */
  enter?(): Promise<() => Promise<void>>;
  /** Runs after each commit, before the updates resolve. It must not reject, because the commit has succeeded. */
  committed?(rev: number, data: string): Promise<void>;
}

/** Creates the queue through which this process updates a document. Other processes may update it at the same time. */
export function documentUpdates<T>(
  { deadlineMs, onStep }: Pick<StoreContext, "deadlineMs" | "onStep">,
  spec: DocumentSpec<T>,
): UpdateQueue<T, Base> {
  const { folder, keep, durable, parse, enter } = spec;
  return new UpdateQueue({
    where: folder,
    deadlineMs,
    parse,
    ...(enter === undefined ? {} : { enter }),
    load: () => {
      spec.prepare();
      return spec.load();
    },
    commit: async (base, data) => {
      await keepEvidence(folder, base.damaged);
      if (!(await commitRevision({ folder, parent: base, data, keep, durable, onStep }))) return false;
      await spec.committed?.(base.next, data);
      return true;
    },
    failure: (error) => mediumError("write", folder, error),
  });
}

/**
 * Creates a document's folder. One rename makes the folder appear together with its first revision.
 *
 * The first revision number is the current time in microseconds. Each commit adds one and takes longer than a
 * microsecond, so the numbers stay behind the clock. If a document is deleted and created again, its new numbers are
 * therefore above all old ones. A writer that was suspended before the deletion can link only an old number, which has
 * no effect.
 *
 * @returns false when the document exists. On a file system that ignores case, the existing name may differ in case.
 */
export async function createDocument(
  context: StoreContext,
  target: string,
  data: string,
  { durable }: { durable: boolean },
): Promise<boolean> {
  const until = performance.now() + context.deadlineMs;
  return await writing(target, async () => {
    for (;;) {
      const outcome = await tryCreate(context, target, data);
      if (outcome === "created" && durable) await syncFolder(dirname(target));
      if (outcome !== "swept") return outcome === "created";
      if (performance.now() > until)
        throw busyError(target, "could not be created, because its unfinished folder was always removed");
    }
  });
}

async function tryCreate(context: StoreContext, target: string, data: string): Promise<"created" | "exists" | "swept"> {
  context.ensureRoot();
  makeFolder(dirname(target));
  if (existsSync(target)) return "exists";
  const temp = join(context.root, scratchName("tmp"));
  try {
    mkdirSync(temp, { mode: 0o700 });
    const rev = Date.now() * 1000;
    const bytes = encodeRevision(rev, scratchName("tmp"), data);
    closeQuietly(await writeNewFile(join(temp, revisionName(rev)), bytes));
    await syncFolder(temp);
    await rename(temp, target);
  } catch (error) {
    await discard(temp);
    const code = systemCode(error);
    if (code === "ENOTEMPTY" || code === "EEXIST") return "exists";
    if (code === "ENOENT") return "swept"; // a sweep removed the unfinished folder
    throw error;
  }
  return "created";
}

/** Removes a folder. If that fails, a later sweep removes the rest. */
export async function discard(path: string): Promise<void> {
  await rm(path, { recursive: true, force: true }).catch(() => "swept later");
}

/**
 * Deletes a document with a tombstone: a dangling symbolic link whose name is the next number. Like the `link()` of a
 * commit, this fails if another writer was first. The caller makes the deletion durable.
 *
 * Unlike a commit, a tombstone does not make the previous revision read-only. So the writer of that revision may conclude
 * that its commit failed. That writer then tries again and finds that the document does not exist.
 *
 * @returns false when another writer was first or the folder disappeared. The caller then reads again.
 */
export function raiseTombstone(folder: string, next: number): boolean {
  try {
    symlinkSync("deleted", join(folder, revisionName(next)));
  } catch (error) {
    const code = systemCode(error);
    if (code === "EEXIST" || code === "ENOENT") return false;
    throw error;
  }
  // If this process was suspended, other writers may have committed and pruned this number before. In that case, the
  // tombstone is not the newest revision and has no effect.
  return listFolder(folder)?.revisions[0] === next;
}

const SCRATCH = /^\.(?:tmp|trash)-(\d+)-[0-9a-f]+$/;

/** No write takes this many milliseconds. So an older file is a left-over, even if the PID in its name is in use. */
const MAX_AGE_MS = 10 * 60_000;

/** Removes the left-overs of killed writers in `folder`. Does nothing if the folder does not exist. */
export async function sweepFolder(folder: string): Promise<void> {
  let names: string[];
  try {
    names = await readdir(folder);
  } catch {
    return; // the next sweep tries again
  }
  await sweepNames(folder, names);
}

/**
 * Like {@link sweepFolder}, for names that the caller has listed. It may remove the file of a live writer, for example of a
 * writer in another PID namespace. That writer then cannot link its file, and tries again.
 */
export async function sweepNames(folder: string, names: readonly string[]): Promise<void> {
  for (const name of names) {
    const pid = SCRATCH.exec(name)?.[1];
    if (pid === undefined) continue;
    const path = join(folder, name);
    if (isAlive(Number(pid)) && !(await isOld(path))) continue;
    await rm(path, { recursive: true, force: true }).catch(() => "left for the next sweep");
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return systemCode(error) !== "ESRCH";
  }
}

async function isOld(path: string): Promise<boolean> {
  try {
    return (await stat(path)).mtimeMs < Date.now() - MAX_AGE_MS;
  } catch {
    return false;
  }
}

interface Damaged {
  rev: number;
  reason: string;
}

/** The part of a message that names a document's damaged revisions, which are always its newest ones. */
export function describeDamage(what: string, folder: string, damaged: readonly Damaged[]): string {
  const [newest] = damaged;
  if (newest === undefined) return `all revisions of ${what} are missing from ${quote(folder)}`;
  const which = damaged.length === 1 ? "the newest revision" : `the newest ${damaged.length} revisions`;
  const file = quote(join(folder, revisionName(newest.rev)));
  return `${which} of ${what} ${damaged.length === 1 ? "is" : "are"} damaged (${newest.reason}: ${file})`;
}

/** The advice at the end of each warning about damage. `doctor` removes it before it shows the warning. */
export const DAMAGE_ADVICE = "Check the disk, then run: copilotfleet doctor --fix";

export function damageWarning(damage: string, consequence: string): string {
  const sentence = `${damage.charAt(0).toUpperCase()}${damage.slice(1)}`;
  return `${sentence}. ${consequence} ${DAMAGE_ADVICE}`;
}

const QUARANTINED = /^(?:corrupt-\d{16}\.json|registry\.json\.corrupt-.+)$/;

/** Whether `keepEvidence` or `keepCopy` gave a file this name. Such a file proves that the folder once had state. */
export function isQuarantined(name: string): boolean {
  return QUARANTINED.test(name);
}

/**
 * Gives damaged revisions a second name, so that people can still examine them after their numbers have been pruned. The
 * numbered name stays, because a suspended writer could otherwise take the number. Ignores failures.
 */
export async function keepEvidence(folder: string, damaged: readonly number[]): Promise<void> {
  const names = damaged.map(revisionName);
  await Promise.allSettled(names.map((name) => link(join(folder, name), join(folder, `corrupt-${name}`))));
}

/** Like {@link keepEvidence}, for a damaged `registry.json`. Call it before that file is replaced. */
export async function keepCopy(path: string, stillDamaged: (copy: string) => boolean): Promise<void> {
  const copy = `${path}.corrupt-${new Date().toISOString().replaceAll(/[:.]/g, "-")}`;
  try {
    await link(path, copy);
    // If another writer has just repaired the file, the copy is not damaged and not needed.
    if (!stillDamaged(copy)) await unlink(copy);
  } catch {
    // A failure must not prevent the repair.
  }
}
