import { closeSync, mkdirSync, openSync, readdirSync, rmSync, statSync, utimesSync } from "node:fs";
import { dirname, join } from "node:path";
import { systemCode } from "../../errors.js";
import type { ServerRecord } from "../../model/server.js";
import { loadedSessions } from "../../pool/stop/drain.js";
import { isLoadedBy } from "../../runtime/history/session-state.js";
import { ownLimit } from "../../runtime/launch/own-limits.js";

/**
 * Finds the sessions that a server has in memory, without a check of every session that it ever had. The fleet notes each
 * session that it opens, as an empty file, and deletes the note when it finds the session unloaded. A full scan, at most
 * once a minute, finds the sessions that clients opened without the fleet.
 */
const SCAN_EVERY_MS = 60_000;
const OPENING_MS = 60_000;
const SCANNED = "~scanned"; // not in the alphabet of session ids

function folderOf(server: ServerRecord): string {
  return join(dirname(server.home), "open");
}

export function noteOpened(server: ServerRecord, sessionId: string): void {
  touch(folderOf(server), sessionId);
}

export function knownLoaded(server: ServerRecord): string[] {
  const pid = server.process?.pid;
  if (pid === undefined) return [];
  const folder = folderOf(server);
  const scanned = timeOf(join(folder, SCANNED));
  const started = Date.parse(server.startedAt ?? "");
  if (Date.now() - scanned > SCAN_EVERY_MS || scanned < started) {
    const loaded = loadedSessions(server);
    try {
      for (const id of loaded) touch(folder, id);
      touch(folder, SCANNED);
    } catch (error) {
      if (ownLimit(error) === undefined) throw error;
      return loaded; // a full disk has no room for notes; the scan has the same result, at a higher cost
    }
  }
  return notes(folder).filter((id) => {
    if (isLoadedBy(server.home, id, pid)) return true;
    // A young note may belong to a session that is just being opened.
    if (Date.now() - timeOf(join(folder, id)) > OPENING_MS) rmSync(join(folder, id), { force: true });
    return false;
  });
}

/** Ids of the sessions in the server's memory, and of those that the fleet opened within the last minute. */
export function lately(server: ServerRecord): string[] {
  return [...new Set([...knownLoaded(server), ...notes(folderOf(server))])];
}

/** Ids of the sessions noted on this launch. Includes those that were opened in the last minute and unloaded again. */
export function notedSessions(server: ServerRecord): string[] {
  const folder = folderOf(server);
  const started = Date.parse(server.startedAt ?? "");
  return notes(folder).filter((id) => timeOf(join(folder, id)) >= started);
}

/** 0 if there is no such file. */
function timeOf(path: string): number {
  return statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0;
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
