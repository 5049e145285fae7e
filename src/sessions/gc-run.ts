import { randomBytes } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmdirSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { readdir, rmdir, unlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { systemCode } from "../errors.js";
import { identify, ownIdentity } from "../runtime/process-table.js";
import { unwritable } from "../runtime/server-folder.js";
import { claimedBy } from "../runtime/session-state.js";
import type { SessionRecord } from "../store/store.js";

/**
 * Where a gc puts sessions on their way out, beside the state folder that they come from: a folder of its own, named
 * after its process, with a journal of what it is about to delete. Moving a session there is one rename, which at once
 * takes it from everybody and can be undone. When the process is killed, the next gc finds both and finishes.
 */
const GC_FOLDER = ".copilotfleet-gc";
const JOURNAL = "journal.json";
const MOVED = "sessions";
/** In place of a process: there is none of this number. */
const NOBODY = "0-0";
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

  constructor(statePath: string) {
    const { pid, startTicks } = ownIdentity();
    this.#statePath = statePath;
    this.#path = join(dirname(statePath), GC_FOLDER, `${pid}-${startTicks}-${randomBytes(4).toString("hex")}`);
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
    return renameIfThere(join(this.#statePath, id), moved) ? moved : null;
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
  giveBack(id: string, moved: string): void {
    mergeInto(join(this.#statePath, id), moved);
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

/** Removes a session's folder for good. Links are removed, never followed. */
export async function removeFolder(path: string): Promise<void> {
  const entries = await readdir(path, { withFileTypes: true });
  await Promise.all(
    entries.map(async (entry) => {
      const child = join(path, entry.name);
      await (entry.isDirectory() ? removeFolder(child) : unlink(child));
    }),
  );
  await rmdir(path);
}

function runsBeside(statePath: string): FoundRun[] {
  const folder = join(dirname(statePath), GC_FOLDER);
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

/** The newer of two files stays, but for the history: that goes on after what it was. */
function mergeInto(target: string, source: string): void {
  if (!existsSync(target)) {
    renameSync(source, target);
    return;
  }
  for (const entry of readdirSync(source, { withFileTypes: true })) {
    const [from, to] = [join(source, entry.name), join(target, entry.name)];
    if (!existsSync(to)) renameSync(from, to);
    else if (entry.isDirectory()) mergeInto(to, from);
    else if (entry.name === "events.jsonl") prepend(to, from);
  }
  rmSync(source, { recursive: true, force: true });
}

function prepend(path: string, beginning: string): void {
  const whole = Buffer.concat([readFileSync(beginning), readFileSync(path)]);
  writeFileSync(beginning, whole);
  renameSync(beginning, path);
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
