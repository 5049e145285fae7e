import { type Dirent, existsSync, lstatSync, realpathSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { systemCode } from "../../base/errors.js";
import { HeldFolder, regain, walk } from "../../base/held-folder.js";
import type { OwnView } from "../../base/server.js";

/*
 * This file reads the runtime's folders of sessions, `COPILOT_HOME/session-state/<id>/`, directly. The runtime's own
 * list hides sessions that never had a turn, and reading the folders is faster. Measured with runtime 1.0.85.
 */

/**
 * A loaded session has a file `inuse.<pid>.lock`. The runtime removes this file when the session's last client leaves.
 */
const IN_USE = /^inuse\.(\d+)\.lock$/;

export const HISTORY = "events.jsonl";

/**
 * The codes of the errors that occur if the user's agent has replaced a folder with something else, made it unreadable,
 * or made its path too long.
 */
const UNREADABLE = new Set(["EACCES", "ELOOP", "ENAMETOOLONG", "ENOTDIR"]);

export interface SessionFolder {
  path: string;
  /** False before the first turn. The runtime can then only create the session, not resume it. */
  hasHistory: boolean;
  /**
   * The PIDs of the servers that have the session loaded, each as the server itself sees it (`ownPid`). A PID may be
   * stale, because a killed server leaves its lock file behind.
   */
  loadedBy: number[];
  createdAt: Date;
  /** When an entry of the folder itself was last added or removed. Files inside may be newer. */
  modifiedAt: Date;
}

/** The folder in a home that contains one folder for each session. It may be a link, see {@link openSessionState}. */
export function sessionStatePath(home: string): string {
  return join(home, "session-state");
}

export function sessionFolderPath(home: string, sessionId: string): string {
  return join(sessionStatePath(home), sessionId);
}

/** The maximum number of entries that we read from one home's session state. Only an agent would make more entries. */
export const MOST_FOLDERS = 10_000;
/** The maximum number of entries that we read from one session's folder. */
const MOST_ENTRIES = 10_000;
/** The id of a shared server. The id of a user's own server does not match, because its digest is longer. */
const SHARED_SERVER = /^shared-\d{1,9}$/;

/**
 * Opens the folder of a home's sessions. Null if it does not exist, or if it is a link that the fleet did not make,
 * because the user may have made that link. The fleet links the folder to the common folder of this host's shared
 * servers, or to this home's folder in the shared storage.
 */
export function openSessionState(home: string): HeldFolder | null {
  const folder = follow(home);
  if (folder === null) return null;
  // Check the descriptor, not the path: the user can change the path at any time.
  if (isSessionState(folder.realPath, home)) return folder;
  folder[Symbol.dispose]();
  return null;
}

function follow(home: string): HeldFolder | null {
  try {
    return HeldFolder.follow(sessionStatePath(home));
  } catch (error) {
    if (systemCode(error) !== "EACCES") throw error;
    regain(home);
    regain(sessionStatePath(home));
    return HeldFolder.follow(sessionStatePath(home));
  }
}

function isSessionState(real: string, home: string): boolean {
  const realHome = realpathSync(home);
  if (real === sessionStatePath(realHome)) return true;
  const serverId = basename(dirname(realHome));
  const isShared = SHARED_SERVER.test(serverId);
  if (isShared && real === join(dirname(dirname(realHome)), "shared", "session-state")) return true;
  // The home's folder in the shared storage (see `placePath`).
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

/**
 * Like {@link openSessionState}, but also null if the user has made the folder unreadable, because one user must not
 * make the whole listing fail.
 */
function openReadable(home: string): HeldFolder | null {
  try {
    return openSessionState(home);
  } catch (error) {
    if (systemCode(error) === "EACCES") return null;
    throw error;
  }
}

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

/**
 * The PIDs (`ownPid`) of the servers that have loaded the session whose folder is `folder`. The folder need not be in a
 * home, because gc moves a session out of its home before deleting it.
 */
export function claimedBy(folder: string): number[] {
  using held = HeldFolder.open(folder);
  return held === null ? [] : loadedBy(held.entries(MOST_ENTRIES).entries);
}

/**
 * Whether a folder in `session-state` is not a session but the runtime's own, such as `.session-operation-locks` of the
 * full CLI (1.0.102).
 */
export function isRuntimeFolder(name: string): boolean {
  return name.startsWith(".");
}

export function listSessionFolders(home: string): string[] {
  return namesIn(home, (entry) => entry.isDirectory() && !isRuntimeFolder(entry.name));
}

/**
 * The sessions that other hosts have taken from a home. In the place of each session is a plain file (see
 * `fetch-session.ts`).
 */
export function listTakenSessions(home: string): string[] {
  return namesIn(home, (entry) => entry.isFile());
}

function namesIn(home: string, isWanted: (entry: Dirent) => boolean): string[] {
  using state = openSessionState(home);
  if (state === null) return [];
  const { entries } = state.entries(MOST_FOLDERS);
  return entries.filter(isWanted).map(({ name }) => name);
}

export function isLoadedBy(home: string, sessionId: string, process: OwnView): boolean {
  using state = openReadable(home);
  return state !== null && isLoadedIn(state, sessionId, process);
}

/** The PID as the process itself sees it. Its lock files have this PID in their names. */
export function ownPid({ pid, innerPid = pid }: OwnView): number {
  return innerPid;
}

function lockName(process: OwnView): string {
  return `inuse.${ownPid(process)}.lock`;
}

/**
 * Returns a text that identifies one load of a session by a server's process. The text comes from the lock file, which
 * the process creates again at each load. Null if the server does not have the session loaded. Costs one system call,
 * because the front door calls this often.
 */
export function loadIdentity(home: string, sessionId: string, process: OwnView): string | null {
  try {
    const lock = join(sessionFolderPath(home, sessionId), lockName(process));
    const { ino, ctimeNs } = lstatSync(lock, { bigint: true });
    return `${ino}:${ctimeNs}`;
  } catch {
    return null; // the session is not loaded, or the user's agent has replaced its folder
  }
}

function isLoadedIn(state: HeldFolder, sessionId: string, process: OwnView): boolean {
  return existsSync(state.at(`${sessionId}/${lockName(process)}`)) && state.lstat(sessionId)?.isDirectory() === true;
}

export function listLoaded(home: string, process: OwnView): string[] {
  using state = openReadable(home);
  if (state === null) return [];
  const { entries } = state.entries(MOST_FOLDERS);
  return entries.map(({ name }) => name).filter((name) => isLoadedIn(state, name, process));
}

/** The runtime appends to this file. It does not exist before the first turn. */
export function historyPath(home: string, sessionId: string): string {
  return join(sessionFolderPath(home, sessionId), HISTORY);
}

/**
 * Opens a session's history. Returns a descriptor, which the caller closes, or null if the session has no history.
 * Throws a system error if the history is not a regular file.
 */
export function openHistoryFile(home: string, sessionId: string): number | null {
  using folder = openSession(home, sessionId);
  return folder?.file(HISTORY) ?? null;
}

/**
 * Like {@link openHistoryFile}, but takes the path of the folder that contains the sessions' folders. Do not pass a
 * folder in a home. This function does not check the path, so a user's agent could have replaced the folder there.
 */
export function openHistoryIn(sessionState: string, sessionId: string): number | null {
  using state = HeldFolder.open(sessionState);
  using folder = state?.folder(sessionId) ?? null;
  return folder?.file(HISTORY) ?? null;
}

/**
 * Returns a text that changes when the history in a session's `folder` is appended to, replaced or moved away. Unlike
 * most functions here, it may follow links in the path, because it is called very often (see {@link historyBytes}).
 */
export function historyState(folder: string): string {
  try {
    const missing = { throwIfNoEntry: false } as const;
    const file = lstatSync(join(folder, HISTORY), missing);
    return `${lstatSync(folder, missing)?.ino} ${file?.ino} ${file?.size} ${file?.mtimeMs}`;
  } catch (error) {
    const code = systemCode(error);
    if (code === undefined) throw error;
    return code;
  }
}

/** When the session's history was last written (Unix time in milliseconds). 0 if the session has no history. */
export function lastWrite(home: string, sessionId: string): number {
  using folder = openSession(home, sessionId);
  return folder?.lstat(HISTORY)?.mtimeMs ?? 0;
}

/**
 * The length of a session's history, in bytes. Other functions that read a home open each folder in the path, so that
 * they never follow a link. This function does not, because every turn calls it. So the agent could replace the
 * session's folder with a link between the two checks. That would only falsify the length, and the agent can also
 * falsify it by writing to the history.
 */
export function historyBytes(home: string, sessionId: string): number {
  try {
    const missing = { throwIfNoEntry: false } as const;
    if (lstatSync(sessionFolderPath(home, sessionId), missing)?.isDirectory() !== true) return 0;
    return lstatSync(historyPath(home, sessionId), missing)?.size ?? 0;
  } catch (error) {
    if (UNREADABLE.has(systemCode(error) ?? "")) return 0;
    throw error;
  }
}

/** The size of the files in the session's folder, in bytes. Counts only the first 10,000 entries. */
export function sessionBytes(home: string, sessionId: string): number {
  using folder = openSession(home, sessionId);
  let bytes = 0;
  if (folder === null) return bytes;
  for (const stats of walk(folder, { left: MOST_ENTRIES })) if (stats.isFile()) bytes += stats.size;
  return bytes;
}
