import { type Dirent, existsSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { systemCode } from "../errors.js";

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

/** One session's folder, or null when there is none. */
export function readSessionFolder(home: string, sessionId: string): SessionFolder | null {
  const path = sessionFolderPath(home, sessionId);
  const entries = entriesOf(path);
  const stat = statSync(path, { throwIfNoEntry: false });
  if (entries === null || stat === undefined) return null;
  return {
    path,
    createdAt: stat.birthtime,
    modifiedAt: stat.mtime,
    hasHistory: entries.some(({ name }) => name === HISTORY),
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
  return loadedBy(entriesOf(folder) ?? []);
}

/** Whether a folder in `session-state` is the runtime's own: the full CLI (1.0.102) has `.session-operation-locks`. */
export function isRuntimeFolder(name: string): boolean {
  return name.startsWith(".");
}

/** Ids of all session folders in a home. */
export function listSessionFolders(home: string): string[] {
  const entries = entriesOf(sessionStatePath(home)) ?? [];
  return entries.filter((entry) => entry.isDirectory() && !isRuntimeFolder(entry.name)).map(({ name }) => name);
}

/** Ids of sessions that another host has taken from a home: each has left a plain file there (`shared-storage.ts`). */
export function listTakenSessions(home: string): string[] {
  const entries = entriesOf(sessionStatePath(home)) ?? [];
  return entries.filter((entry) => entry.isFile()).map(({ name }) => name);
}

/** Whether the process `pid` has the session in memory. */
export function isLoadedBy(home: string, sessionId: string, pid: number): boolean {
  return existsSync(join(sessionFolderPath(home, sessionId), `inuse.${pid}.lock`));
}

/** The session's history, which the runtime appends to; not there before its first turn. */
export function historyPath(home: string, sessionId: string): string {
  return join(sessionFolderPath(home, sessionId), HISTORY);
}

/** When the session's history was last written, in milliseconds since the epoch; 0 if it has none. */
export function lastWrite(home: string, sessionId: string): number {
  return statSync(historyPath(home, sessionId), { throwIfNoEntry: false })?.mtimeMs ?? 0;
}

/** How many sessions the process `pid` has in memory. */
export function countLoaded(home: string, pid: number): number {
  return listSessionFolders(home).filter((id) => isLoadedBy(home, id, pid)).length;
}

/** Bytes of all files below a folder. What vanishes meanwhile counts nothing. */
export function folderBytes(path: string): number {
  let bytes = 0;
  for (const entry of entriesOf(path) ?? []) {
    const child = join(path, entry.name);
    if (entry.isDirectory()) bytes += folderBytes(child);
    else if (entry.isFile()) bytes += statSync(child, { throwIfNoEntry: false })?.size ?? 0;
  }
  return bytes;
}

function entriesOf(path: string): Dirent[] | null {
  try {
    return readdirSync(path, { withFileTypes: true });
  } catch (error) {
    const code = systemCode(error);
    if (code === "ENOENT" || code === "ENOTDIR") return null;
    throw error;
  }
}
