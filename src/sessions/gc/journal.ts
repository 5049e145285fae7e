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
import { systemCode } from "../../errors.js";
import type { SessionRecord } from "../../model/session.js";
import { type Budget, HeldFolder, removeTree } from "../../runtime/files/held-folder.js";
import { HOME, unwritable } from "../../runtime/files/server-folder.js";
import { claimedBy, HISTORY, openSessionState } from "../../runtime/history/session-state.js";
import { identify, ownIdentity } from "../../runtime/process/process-table.js";

/**
 * Each gc moves the sessions that it deletes into a folder of its own, near their state folder. The folder is never in a
 * home, where the user's agent could write. It is named after the gc's process and contains a journal of the sessions that
 * are about to be deleted. Moving a session there is one rename, which takes the session from everybody at once and can be
 * undone. If the process is killed, the next gc finds the folder and the journal, and finishes.
 */
const GC_FOLDER = ".copilotfleet-gc";
const JOURNAL = "journal.json";
const MOVED = "sessions";
/** Replaces the process in the name of a folder that the next gc may take over. No process has the PID 0. */
const NOBODY = "0-0";
/** How many files and folders one gc removes from a state folder at most. The next gc removes more. */
const MOST_REMOVED = 100_000;
const MOST_MERGED = 10_000;
const DEEPEST_MERGED = 32;
const NAME = /^(\d+)-(\d+)-[0-9a-f]+$/;

/** A session that a gc is about to delete. */
export interface Note {
  id: string;
  owner: string | null;
  record: SessionRecord | null;
  /** Milliseconds since the epoch. A later write to the session counts as a use. */
  notedAtMs: number;
}

/** The folder of a gc that is running or was killed. */
interface FoundRun {
  path: string;
  alive: boolean;
  notes: Note[];
  /** Sessions that were moved there and are not removed. */
  moved: string[];
}

/** The unfinished work of other gcs in a state folder. */
export interface Business {
  /** Ids of the sessions that running gcs are deleting. */
  taken: Set<string>;
  /** The sessions that killed gcs were about to delete, by id. They are due. */
  noted: Map<string, Note>;
  /** The folders of killed gcs. */
  killed: Set<string>;
}

/**
 * The folder that contains the folders of gcs. For a state folder in a home, it is beside the home: on the same disk, and
 * out of reach for the user's agent, which can write only in the home.
 */
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

/**
 * Whether a running gc may still delete or restore the session. A gc notes the session before it deletes the record. Once
 * the session's folder is in neither the home nor the gc's folder, the session is deleted.
 */
export function isBeingDeleted(home: string, sessionId: string): boolean {
  using state = openSessionState(home);
  if (state === null) return false;
  const runs = runsBeside(state.realPath).filter(({ alive }) => alive);
  if (!runs.some(({ notes }) => notes.some(({ id }) => id === sessionId))) return false;
  const isInHome = () => state.lstat(sessionId) !== undefined;
  // Look into the home twice, because gc may give the folder back after we looked there and before we look into gc's own
  // folder.
  return isInHome() || runs.some(({ path }) => existsSync(join(path, MOVED, sessionId))) || isInHome();
}

/** A session that a killed gc has moved into its folder, but neither removed nor given back. */
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
  /** Folders taken over from killed gcs. They are removed at the end, when the work in their journals is done. */
  readonly #inherited: string[] = [];
  #made = false;
  readonly #budget: Budget = { left: MOST_REMOVED };

  /** @param statePath the state folder, with all links resolved */
  constructor(statePath: string) {
    const { pid, startTicks } = ownIdentity();
    this.#statePath = statePath;
    this.#path = join(gcFolder(statePath), `${pid}-${startTicks}-${randomBytes(4).toString("hex")}`);
  }

  /**
   * Takes over the folders of killed gcs, so that no other gc does.
   *
   * @param killed the folders of the gcs that were dead when the survey judged which sessions are due. A gc that was killed
   * later was still running then, so the survey left its sessions out. They are for the next gc, which needs its journal.
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
   * Records the sessions that are about to be deleted, before any of them is touched. Replaces the sessions noted before,
   * because they are done.
   *
   * @throws FleetError `FLEET_STATE_UNWRITABLE` when the journal cannot be written.
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

  /** Moves a session into this gc's folder, where nobody else finds it. @returns null if it is no longer there. */
  take(id: string): string | null {
    const moved = join(this.#path, MOVED, id);
    using state = this.#openState();
    if (state?.lstat(id)?.isDirectory() !== true) return null;
    return renameIfThere(state.at(id), moved) ? moved : null;
  }

  /** Null if a folder in the path was replaced after the survey, perhaps by a link to the sessions of somebody else. */
  #openState(): HeldFolder | null {
    const state = HeldFolder.open(this.#statePath);
    if (state === null || state.realPath === this.#statePath) return state;
    state[Symbol.dispose]();
    return null;
  }

  /** Removes a moved session. If it has very many files, leaves some to the next gc. @returns whether it is gone. */
  async remove(moved: string): Promise<boolean> {
    return await removeTree(moved, this.#budget);
  }

  /**
   * Whether a server opened the session just as it was moved. The runtime then creates the folder again, with its lock but
   * without the description (`workspace.yaml`) that every new session has.
   */
  isOpened(id: string, moved: string, pids: ReadonlySet<number>): boolean {
    const original = join(this.#statePath, id);
    const isAnew = existsSync(join(original, "workspace.yaml"));
    return [...claimedBy(moved), ...(isAnew ? [] : claimedBy(original))].some((pid) => pids.has(pid));
  }

  /** Moves a session back. If the runtime has made its folder again, merges the session into that. */
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
   * Removes this gc's folders. A folder stays, like that of a killed gc, if it still contains sessions or if `finished` is
   * false.
   */
  end(finished: boolean): void {
    for (const path of [...this.#inherited, this.#path]) {
      if (finished && readRun(path).moved.length === 0) rmSync(path, { recursive: true, force: true });
      else renameIfThere(path, join(dirname(path), `${NOBODY}-${randomBytes(4).toString("hex")}`));
    }
    // A read-only disk would refuse the removal even if the folder does not exist.
    if (!existsSync(dirname(this.#path))) return;
    try {
      rmdirSync(dirname(this.#path));
    } catch (error) {
      if (!["ENOENT", "ENOTEMPTY", "EEXIST"].includes(systemCode(error) ?? "")) throw error; // another gc uses it
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

/** The notes in a journal. An incomplete journal counts as empty, because its gc has not touched any session. */
function readJournal(path: string): Note[] {
  try {
    const notes: unknown = JSON.parse(readFileSync(path, "utf8"));
    return Array.isArray(notes) ? (notes as Note[]) : [];
  } catch {
    return [];
  }
}

/**
 * Merges the moved folder of a session into the one that a runtime has made since. If both have a file, the newer one stays,
 * except for the history: the new history is appended to the old one. The user's agent can write both folders, so this
 * reads only regular files.
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

/** Null if the history is not a regular file. */
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

/** Retries, because another gc that ends removes the parent folder whenever it is empty. */
function makeFolder(path: string): void {
  for (let attempt = 0; ; attempt++) {
    try {
      // Do not use `recursive`: on a read-only disk, it fails with ENOENT (Node 20).
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
