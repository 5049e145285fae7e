import { closeSync, mkdirSync, openSync, readdirSync, rmSync, statSync, utimesSync } from "node:fs";
import { dirname, join } from "node:path";
import { systemCode } from "../errors.js";
import { loadedSessions } from "../pool/drain.js";
import { ownLimit } from "../runtime/own-limits.js";
import { isLoadedBy } from "../runtime/session-state.js";
import type { ServerRecord } from "../store/store.js";

/**
 * Which sessions a server has in memory, without a look at every session it ever had: the fleet notes each one that it
 * opens, as an empty file, and forgets the note when it finds the session unloaded. Sessions that clients opened past
 * the fleet are found by a whole scan, at most once in a minute.
 */
const SCAN_EVERY_MS = 60_000;
const OPENING_MS = 60_000;
const SCANNED = "~scanned"; // not in the alphabet of session ids

function folderOf(server: ServerRecord): string {
  return join(dirname(server.home), "open");
}

/** Notes that the fleet opens a session on this server. */
export function noteOpened(server: ServerRecord, sessionId: string): void {
  touch(folderOf(server), sessionId);
}

/** Ids of the sessions in the server's memory. */
export function knownLoaded(server: ServerRecord): string[] {
  const pid = server.process?.pid;
  if (pid === undefined) return [];
  const folder = folderOf(server);
  const scanned = statSync(join(folder, SCANNED), { throwIfNoEntry: false })?.mtimeMs ?? 0;
  const started = Date.parse(server.startedAt ?? "");
  if (Date.now() - scanned > SCAN_EVERY_MS || scanned < started) {
    const loaded = loadedSessions(server);
    try {
      for (const id of loaded) touch(folder, id);
      touch(folder, SCANNED);
    } catch (error) {
      if (ownLimit(error) === undefined) throw error;
      return loaded; // a full disk takes no notes: looking at every session costs more, and says the same
    }
  }
  return notes(folder).filter((id) => {
    if (isLoadedBy(server.home, id, pid)) return true;
    // A young note is of a session that is just being opened.
    const noted = statSync(join(folder, id), { throwIfNoEntry: false })?.mtimeMs ?? 0;
    if (Date.now() - noted > OPENING_MS) rmSync(join(folder, id), { force: true });
    return false;
  });
}

/** Ids of the sessions in the server's memory, and of those that the fleet opened within the last minute. */
export function lately(server: ServerRecord): string[] {
  return [...new Set([...knownLoaded(server), ...notes(folderOf(server))])];
}

/** Ids of the sessions that the fleet opened on this launch in the last minute, also those that are unloaded again. */
export function notedSessions(server: ServerRecord): string[] {
  const folder = folderOf(server);
  const started = Date.parse(server.startedAt ?? "");
  return notes(folder).filter((id) => (statSync(join(folder, id), { throwIfNoEntry: false })?.mtimeMs ?? 0) >= started);
}

function notes(folder: string): string[] {
  try {
    return readdirSync(folder).filter((name) => name !== SCANNED);
  } catch (error) {
    if (systemCode(error) === "ENOENT") return [];
    throw error;
  }
}

function touch(folder: string, name: string): void {
  const path = join(folder, name);
  try {
    closeSync(openSync(path, "a", 0o600));
  } catch (error) {
    if (systemCode(error) !== "ENOENT") throw error;
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    closeSync(openSync(path, "a", 0o600));
  }
  const now = new Date();
  utimesSync(path, now, now);
}
