import { randomBytes } from "node:crypto";
import {
  closeSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmdirSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { systemCode } from "../errors.js";
import { type Budget, HeldFolder, removeTree } from "../runtime/held-folder.js";
import { identify, ownIdentity } from "../runtime/process-table.js";
import { HOME, unwritable } from "../runtime/server-folder.js";
import { claimedBy, HISTORY } from "../runtime/session-state.js";
import type { SessionRecord } from "../store/store.js";

/**
 * Where a gc puts sessions on their way out, near the state folder that they come from and never in a home, where the
 * user's agent could write: a folder of its own, named after its process, with a journal of what it is about to delete. Moving a session there is one rename, which at once
 * takes it from everybody and can be undone. When the process is killed, the next gc finds both and finishes.
 */
const GC_FOLDER = ".copilotfleet-gc";
const JOURNAL = "journal.json";
const MOVED = "sessions";
/** In place of a process: there is none of this number. */
const NOBODY = "0-0";
/** How much of one state folder a gc removes in one go, in files and folders. The next one goes on. */
const MOST_REMOVED = 100_000;
const MOST_MERGED = 10_000;
const DEEPEST_MERGED = 32;
const NAME = /^(\d+)-(\d+)-[0-9a-f]+$/;

/** One session that a gc is about to delete. */
export interface Note {
  id: string;
  owner: string | null;
  record: SessionRecord | null;
  /** Milliseconds since the epoch: whoever writes to the session after this uses it. */
  notedAtMs: number;
}

/** Left by a gc that was killed, or under way. */
interface FoundRun {
  path: string;
  alive: boolean;
  notes: Note[];
  /** Sessions moved there and not removed yet. */
  moved: string[];
}

/** What other gcs have in hand in a state folder. */
export interface Business {
  /** Of those that run: theirs to delete. */
  taken: Set<string>;
  /** Of those that were killed: due. */
  noted: Map<string, Note>;
  /** The folders of those that were killed. */
  killed: Set<string>;
}

/** Of a home the folder above it: the home is on the same disk, and its user's agent can write only below. */
function gcFolder(statePath: string): string {
  const parent = dirname(statePath);
  return join(basename(parent) === HOME ? dirname(parent) : parent, GC_FOLDER);
}

export function unfinishedBusiness(statePath: string): Business {
  const runs = runsBeside(statePath);
  const notes = (alive: boolean) => runs.filter((run) => run.alive === alive).flatMap((run) => run.notes);
  return {
    taken: new Set(notes(true).map(({ id }) => id)),
    noted: new Map(notes(false).map((note) => [note.id, note])),
    killed: new Set(runs.flatMap(({ alive, path }) => (alive ? [] : [path]))),
  };
}

/** A session in the folder of a gc that was killed: moved there, but neither removed nor given back. */
export interface Leftover {
  note: Note;
  path: string;
}

export function leftovers(statePath: string): Leftover[] {
  return runsBeside(statePath)
    .filter(({ alive }) => !alive)
    .flatMap(({ path, notes, moved }) => moved.map((id) => leftover(path, id, notes)));
}

function leftover(runPath: string, id: string, notes: readonly Note[]): Leftover {
  const note = notes.find((known) => known.id === id) ?? { id, owner: null, record: null, notedAtMs: 0 };
  return { note, path: join(runPath, MOVED, id) };
}

/** This process's gc in one state folder. */
export class Run {
  readonly #statePath: string;
  readonly #path: string;
  /** Of gcs that were killed, taken over: removed at the end, when what their journals tell of is done. */
  readonly #inherited: string[] = [];
  #made = false;
  readonly #budget: Budget = { left: MOST_REMOVED };

  /** @param statePath with all links resolved. */
  constructor(statePath: string) {
    const { pid, startTicks } = ownIdentity();
    this.#statePath = statePath;
    this.#path = join(gcFolder(statePath), `${pid}-${startTicks}-${randomBytes(4).toString("hex")}`);
  }

  /**
   * Takes over what gcs that were killed have left, so that no other gc does.
   *
   * @param killed the folders of those that were when it was judged what is due. What one that was killed since had noted was
   * taken for its own to delete then: that is for the next gc, which needs its journal.
   */
  inherit(killed: ReadonlySet<string>): Leftover[] {
    const before = runsBeside(this.#statePath).filter(({ path }) => killed.has(path));
    if (before.length === 0) return [];
    for (const { path } of before) {
      const mine = `${this.#path}${randomBytes(4).toString("hex")}`;
      if (renameIfThere(path, mine)) this.#inherited.push(mine);
    }
    return this.#inherited.flatMap((path) => {
      const { notes, moved } = readRun(path);
      return moved.map((id) => leftover(path, id, notes));
    });
  }

  /**
   * Writes down what is about to be deleted, before any of it is touched. What was noted before is done.
   *
   * @throws FleetError `FLEET_STATE_UNWRITABLE`.
   */
  note(notes: readonly Note[]): void {
    try {
      if (!this.#made) makeFolder(this.#path);
      this.#made = true;
      writeFileSync(join(this.#path, JOURNAL), JSON.stringify(notes), { mode: 0o600 });
    } catch (error) {
      throw unwritable(this.#statePath, error);
    }
  }

  /** Moves a session out of everybody's sight. @returns null when it is not there any more. */
  take(id: string): string | null {
    const moved = join(this.#path, MOVED, id);
    using state = this.#openState();
    if (state?.lstat(id)?.isDirectory() !== true) return null;
    return renameIfThere(state.at(id), moved) ? moved : null;
  }

  /** Null when a folder on the way was replaced since the survey, perhaps by a link to somebody else's sessions. */
  #openState(): HeldFolder | null {
    const state = HeldFolder.open(this.#statePath);
    if (state === null || state.realPath === this.#statePath) return state;
    state[Symbol.dispose]();
    return null;
  }

  /** Removes what was moved, unless this run has removed very much: that is for the next gc. @returns whether it is gone. */
  async remove(moved: string): Promise<boolean> {
    return await removeTree(moved, this.#budget);
  }

  /**
   * Whether somebody opened the session in the very moment in which it was moved. A runtime makes the folder anew then,
   * with its lock but without the description that a new session begins with.
   */
  isOpened(id: string, moved: string, pids: ReadonlySet<number>): boolean {
    const original = join(this.#statePath, id);
    const isAnew = existsSync(join(original, "workspace.yaml"));
    return [...claimedBy(moved), ...(isAnew ? [] : claimedBy(original))].some((pid) => pids.has(pid));
  }

  /** Moves a session back, into what the runtime has made of its folder meanwhile, if it has. */
  async giveBack(id: string, moved: string): Promise<void> {
    using state = this.#openState();
    if (state === null) return; // the next gc tries again
    if (state.lstat(id) === undefined) {
      renameSync(moved, state.at(id));
      return;
    }
    using target = state.folder(id);
    using source = HeldFolder.open(moved);
    if (target === null || source === null) return;
    mergeInto(target, source);
    await this.remove(moved);
  }

  /**
   * Leaves nothing behind. What is not done, since a session could not be removed or `finished` is false, is left as that
   * of a gc that was killed.
   */
  end(finished: boolean): void {
    for (const path of [...this.#inherited, this.#path]) {
      if (finished && readRun(path).moved.length === 0) rmSync(path, { recursive: true, force: true });
      else renameIfThere(path, join(dirname(path), `${NOBODY}-${randomBytes(4).toString("hex")}`));
    }
    // A disk that is read-only refuses that of a folder that is not there, too.
    if (!existsSync(dirname(this.#path))) return;
    try {
      rmdirSync(dirname(this.#path));
    } catch (error) {
      if (!["ENOENT", "ENOTEMPTY", "EEXIST"].includes(systemCode(error) ?? "")) throw error; // another gc is at it
    }
  }
}

function runsBeside(statePath: string): FoundRun[] {
  const folder = gcFolder(statePath);
  return entriesIfThere(folder).flatMap(({ name }) => {
    const [, pid, startTicks] = NAME.exec(name) ?? [];
    if (pid === undefined) return [];
    const path = join(folder, name);
    return [{ path, alive: identify(Number(pid))?.startTicks === startTicks, ...readRun(path) }];
  });
}

function readRun(path: string): Pick<FoundRun, "notes" | "moved"> {
  const moved = entriesIfThere(join(path, MOVED)).filter((entry) => entry.isDirectory());
  return { notes: readJournal(join(path, JOURNAL)), moved: moved.map(({ name }) => name) };
}

/** A journal that is not whole was never acted upon. */
function readJournal(path: string): Note[] {
  try {
    const notes: unknown = JSON.parse(readFileSync(path, "utf8"));
    return Array.isArray(notes) ? (notes as Note[]) : [];
  } catch {
    return [];
  }
}

/**
 * The newer of two files stays, but for the history: that goes on after what it was. The user's agent can write both
 * folders, so whatever is not a file there is not read.
 */
function mergeInto(target: HeldFolder, source: HeldFolder, depth = 0): void {
  for (const entry of source.entries(MOST_MERGED).entries) {
    const { name } = entry;
    if (target.lstat(name) === undefined) renameSync(source.at(name), target.at(name));
    else if (entry.isDirectory() && depth < DEEPEST_MERGED) {
      using into = target.folder(name);
      using from = source.folder(name);
      if (into !== null && from !== null) mergeInto(into, from, depth + 1);
    } else if (name === HISTORY) prepend(target, source);
  }
}

function prepend(target: HeldFolder, source: HeldFolder): void {
  const [before, after] = [readHistory(source), readHistory(target)];
  if (before === null || after === null) return;
  const whole = `${HISTORY}.${randomBytes(6).toString("hex")}`;
  writeFileSync(source.at(whole), Buffer.concat([before, after]), { mode: 0o600, flag: "wx" });
  renameSync(source.at(whole), target.at(HISTORY));
}

/** Null for anything but a file. */
function readHistory(folder: HeldFolder): Buffer | null {
  if (folder.lstat(HISTORY)?.isFile() !== true) return null;
  const fd = folder.file(HISTORY);
  if (fd === null) return null;
  try {
    return readFileSync(fd);
  } finally {
    closeSync(fd);
  }
}

function renameIfThere(from: string, to: string): boolean {
  try {
    renameSync(from, to);
    return true;
  } catch (error) {
    if (systemCode(error) === "ENOENT") return false;
    throw error;
  }
}

/** Another gc that ends removes the folder above as soon as it is empty. */
function makeFolder(path: string): void {
  for (let attempt = 0; ; attempt++) {
    try {
      // Not with `recursive`: on a read-only disk that says ENOENT (Node 20).
      makeIfNotThere(dirname(path));
      makeIfNotThere(path);
      makeIfNotThere(join(path, MOVED));
      return;
    } catch (error) {
      if (systemCode(error) !== "ENOENT" || attempt > 100) throw error;
    }
  }
}

function makeIfNotThere(folder: string): void {
  try {
    mkdirSync(folder, { mode: 0o700 });
  } catch (error) {
    if (systemCode(error) !== "EEXIST") throw error;
  }
}

function entriesIfThere(path: string) {
  try {
    return readdirSync(path, { withFileTypes: true });
  } catch (error) {
    if (systemCode(error) === "ENOENT") return [];
    throw error;
  }
}
