import { type Dirent, existsSync, readdirSync, readFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import type { SessionRecord } from "../../model/session.js";
import { ifThere } from "../../runtime/files/if-there.js";
import { HOME } from "../../runtime/files/server-folder.js";
import { openSessionState } from "../../runtime/history/session-state.js";
import { identify } from "../../runtime/process/process-table.js";

/*
 * Before gc deletes sessions, it moves them into a temporary folder near their session-state folder. The folder's name
 * contains the PID and the start time of the gc process. A journal in the folder lists the sessions. If gc is killed,
 * the next gc finds this folder and finishes the work.
 */
const GC_FOLDER = ".copilotfleet-gc";
export const JOURNAL = "journal.json";
export const MOVED = "sessions";
const NAME = /^(\d+)-(\d+)-[0-9a-f]+$/;

/** A session that a gc is about to delete. */
export interface Note {
  id: string;
  owner: string | null;
  record: SessionRecord | null;
  /** Unix time in milliseconds. A later write to the session counts as a use. */
  notedAtMs: number;
}

/** The folder of a gc that is running or was killed. `moved` contains the ids of the sessions that are still in it. */
interface FoundRun {
  path: string;
  alive: boolean;
  notes: Note[];
  moved: string[];
}

/** The unfinished deletions of other gcs in a session-state folder. */
export interface Business {
  /** Ids of the sessions that a running gc is deleting. */
  taken: Set<string>;
  /** The sessions that a killed gc was about to delete, by id. This gc may delete them at any age. */
  noted: Map<string, Note>;
  /** The folders of gc runs that were killed. */
  killed: Set<string>;
}

/**
 * The folder for the runs of gc. For the sessions in a home, it is beside that home, because it must be on the same disk and
 * the user's agent must not be able to write there.
 */
export function gcFolder(statePath: string): string {
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
 * Whether a running gc may still restore the session: the gc's journal lists the session, and the session's folder
 * still exists, in the home or in the gc's folder. gc writes its journal before it deletes a record.
 */
export function isBeingDeleted(home: string, sessionId: string): boolean {
  using state = openSessionState(home);
  if (state === null) return false;
  const runs = runsBeside(state.realPath).filter(({ alive }) => alive);
  if (!runs.some(({ notes }) => notes.some(({ id }) => id === sessionId))) return false;
  const isInHome = () => state.lstat(sessionId) !== undefined;
  // Look into the home twice, because gc may move the folder back into the home between our look at the home and our
  // look at gc's folder.
  return isInHome() || runs.some(({ path }) => existsSync(join(path, MOVED, sessionId))) || isInHome();
}

/** A session that a killed gc has moved into its temporary folder, but neither removed nor moved back. */
export interface Leftover {
  note: Note;
  path: string;
}

export function leftovers(statePath: string): Leftover[] {
  return runsBeside(statePath)
    .filter(({ alive }) => !alive)
    .flatMap(({ path, notes, moved }) => moved.map((id) => leftover(path, id, notes)));
}

export function leftover(runPath: string, id: string, notes: readonly Note[]): Leftover {
  const note = notes.find((known) => known.id === id) ?? { id, owner: null, record: null, notedAtMs: 0 };
  return { note, path: join(runPath, MOVED, id) };
}

export function runsBeside(statePath: string): FoundRun[] {
  const folder = gcFolder(statePath);
  return entriesOf(folder).flatMap(({ name }) => {
    const [, pid, startTicks] = NAME.exec(name) ?? [];
    if (pid === undefined) return [];
    const path = join(folder, name);
    return [{ path, alive: identify(Number(pid))?.startTicks === startTicks, ...readRun(path) }];
  });
}

export function readRun(path: string): Pick<FoundRun, "notes" | "moved"> {
  const moved = entriesOf(join(path, MOVED)).filter((entry) => entry.isDirectory());
  return { notes: readJournal(join(path, JOURNAL)), moved: moved.map(({ name }) => name) };
}

/**
 * The notes in a journal. gc finishes writing a journal before it changes any session that the journal lists. So a
 * missing or incomplete journal counts as empty.
 */
function readJournal(path: string): Note[] {
  try {
    const notes: unknown = JSON.parse(readFileSync(path, "utf8"));
    return Array.isArray(notes) ? (notes as Note[]) : [];
  } catch {
    return [];
  }
}

function entriesOf(path: string): Dirent[] {
  return ifThere(() => readdirSync(path, { withFileTypes: true })) ?? [];
}
