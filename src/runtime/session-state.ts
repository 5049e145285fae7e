import { type Dirent, existsSync, realpathSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { systemCode } from "../errors.js";
import { type Budget, HeldFolder, walk } from "./held-folder.js";

/**
 * What the runtime keeps of sessions below `COPILOT_HOME/session-state/<id>/`, read directly: its own list hides
 * sessions that never had a turn, and reading the folders is faster. Measured with runtime 1.0.85.
 */

/** A loaded session holds `inuse.<pid>.lock`; it goes when its last client leaves. */
const IN_USE = /^inuse\.(\d+)\.lock$/;

/** The history of a session, in its folder. */
export const HISTORY = "events.jsonl";

export interface SessionFolder {
  path: string;
  /** Without a history (no turn yet) the runtime can only create the session, not resume it. */
  hasHistory: boolean;
  /** PIDs that claim to have it loaded; a killed server leaves its claim behind. */
  loadedBy: number[];
  createdAt: Date;
  /** When an entry of the folder itself was last added or removed; the files inside may be newer. */
  modifiedAt: Date;
}

/** Where a home keeps its sessions, a folder each; homes of shared servers have a link there. */
export function sessionStatePath(home: string): string {
  return join(home, "session-state");
}

function sessionFolderPath(home: string, sessionId: string): string {
  return join(sessionStatePath(home), sessionId);
}

/** How many sessions' folders of one home are looked at. A home of more was filled by its user's agent. */
export const MOST_FOLDERS = 10_000;
/** How many entries of one session's folder are looked at. */
const MOST_ENTRIES = 10_000;
/** How the ids of shared servers look. The digest in the id of a user's own server is longer. */
const SHARED_SERVER = /^shared-\d{1,9}$/;

/**
 * The folder of a home's sessions, or null when there is none. It may be a link of our own making: to what the shared
 * servers of this host have in common, or to this home's place in shared storage. A link to anywhere else is the user's,
 * and is not followed.
 */
export function openSessionState(home: string): HeldFolder | null {
  const folder = HeldFolder.follow(sessionStatePath(home));
  if (folder === null) return null;
  // By the descriptor and not by the path, which the user can change at any time.
  if (isSessionState(folder.realPath, home)) return folder;
  folder[Symbol.dispose]();
  return null;
}

function isSessionState(real: string, home: string): boolean {
  const realHome = realpathSync(home);
  if (real === sessionStatePath(realHome)) return true;
  const serverId = basename(dirname(realHome));
  const isShared = SHARED_SERVER.test(serverId);
  if (isShared && real === join(dirname(dirname(realHome)), "shared", "session-state")) return true;
  // The place of this home in shared storage (`placePath`).
  const group = isShared ? "shared" : serverId;
  const place = dirname(dirname(dirname(real)));
  return (
    real === join(place, basename(dirname(dirname(real))), group, "session-state") &&
    basename(place) === "hosts" &&
    !real.startsWith(`${realHome}/`)
  );
}

function openSession(home: string, sessionId: string): HeldFolder | null {
  using state = openReadable(home);
  return state?.folder(sessionId) ?? null;
}

/** Null also for a folder that its user has made unreadable: one user's sessions must not end a look at all. */
function openReadable(home: string): HeldFolder | null {
  try {
    return openSessionState(home);
  } catch (error) {
    if (systemCode(error) === "EACCES") return null;
    throw error;
  }
}

/** One session's folder, or null when there is none. */
export function readSessionFolder(home: string, sessionId: string): SessionFolder | null {
  using folder = openSession(home, sessionId);
  if (folder === null) return null;
  const { entries } = folder.entries(MOST_ENTRIES);
  const { birthtime, mtime } = folder.stats;
  return {
    path: sessionFolderPath(home, sessionId),
    createdAt: birthtime,
    modifiedAt: mtime,
    hasHistory: folder.lstat(HISTORY) !== undefined,
    loadedBy: loadedBy(entries),
  };
}

export function isInUseMark(name: string): boolean {
  return IN_USE.test(name);
}

function loadedBy(entries: readonly Dirent[]): number[] {
  return entries.flatMap(({ name }) => IN_USE.exec(name)?.[1] ?? []).map(Number);
}

/** PIDs that claim to have the session of this very folder loaded, wherever the folder is; none when it is gone. */
export function claimedBy(folder: string): number[] {
  using held = HeldFolder.open(folder);
  return held === null ? [] : loadedBy(held.entries(MOST_ENTRIES).entries);
}

/** Whether a folder in `session-state` is the runtime's own: the full CLI (1.0.102) has `.session-operation-locks`. */
export function isRuntimeFolder(name: string): boolean {
  return name.startsWith(".");
}

/** Ids of the session folders in a home, at most {@link MOST_FOLDERS}. */
export function listSessionFolders(home: string): string[] {
  return namesIn(home, (entry) => entry.isDirectory() && !isRuntimeFolder(entry.name));
}

/** Ids of sessions that another host has taken from a home: each has left a plain file there (`shared-storage.ts`). */
export function listTakenSessions(home: string): string[] {
  return namesIn(home, (entry) => entry.isFile());
}

function namesIn(home: string, isWanted: (entry: Dirent) => boolean): string[] {
  using state = openSessionState(home);
  if (state === null) return [];
  const { entries } = state.entries(MOST_FOLDERS);
  return entries.filter(isWanted).map(({ name }) => name);
}

/** Whether the process `pid` has the session in memory. */
export function isLoadedBy(home: string, sessionId: string, pid: number): boolean {
  using state = openReadable(home);
  return state !== null && isLoadedIn(state, sessionId, pid);
}

function isLoadedIn(state: HeldFolder, sessionId: string, pid: number): boolean {
  return existsSync(state.at(`${sessionId}/inuse.${pid}.lock`)) && state.lstat(sessionId)?.isDirectory() === true;
}

/** Ids of the sessions that the process `pid` has in memory. */
export function listLoaded(home: string, pid: number): string[] {
  using state = openReadable(home);
  if (state === null) return [];
  const { entries } = state.entries(MOST_FOLDERS);
  return entries.map(({ name }) => name).filter((name) => isLoadedIn(state, name, pid));
}

/** The session's history, which the runtime appends to; not there before its first turn. */
export function historyPath(home: string, sessionId: string): string {
  return join(sessionFolderPath(home, sessionId), HISTORY);
}

/**
 * A descriptor of the session's history, which the caller closes; null if there is none. The tools of a session can put
 * anything in its place: a pipe would block this process, a link would lead elsewhere.
 *
 * @throws what the system says when it cannot be read, and EINVAL for anything but a file.
 */
export function openHistoryFile(home: string, sessionId: string): number | null {
  using folder = openSession(home, sessionId);
  return folder?.file(HISTORY) ?? null;
}

/** When the session's history was last written, in milliseconds since the epoch; 0 if it has none. */
export function lastWrite(home: string, sessionId: string): number {
  using folder = openSession(home, sessionId);
  return folder?.lstat(HISTORY)?.mtimeMs ?? 0;
}

/** Bytes of the files of a session; of the first ones if there are very many. */
export function sessionBytes(home: string, sessionId: string): number {
  using folder = openSession(home, sessionId);
  let bytes = 0;
  const budget: Budget = { left: MOST_ENTRIES };
  if (folder !== null) {
    walk(folder, budget, (stats) => {
      if (stats.isFile()) bytes += stats.size;
      return true;
    });
  }
  return bytes;
}
