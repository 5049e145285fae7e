import { randomUUID } from "node:crypto";
import { closeSync, openSync, readdirSync, readFileSync, rmSync, statSync, utimesSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import type { ProviderConfig } from "@github/copilot-sdk";
import { systemCode } from "../../base/errors.js";
import type { ServerRecord } from "../../base/server.js";
import type { SessionRecord } from "../../base/session.js";
import { isLoadedBy } from "../../runtime/history/session-state.js";
import { ownLimit } from "../../runtime/launch/launch.js";
import { loadedSessions } from "../../servers/stop.js";
import { inFolder } from "../../servers/use-markers.js";
import type { SessionsContext } from "../problems.js";

/*
 * `knownLoaded` finds the sessions in a server's memory without looking at every session that the server ever had. The
 * fleet makes a file, a note, for each session that it loads. It deletes the note when it finds the session unloaded. A
 * full scan, at most once a minute, finds the sessions that clients loaded without the fleet.
 *
 * A note contains a stamp: a random text. A process replaces it whenever it loads the session or gives the server a
 * model provider for it. If the note still contains the stamp of a process, no other process of the fleet has done that
 * since.
 */
const SCAN_EVERY_MS = 60_000;
/**
 * A note younger than this, in milliseconds, stays even if its session is not loaded, because the server may be loading
 * the session at that moment.
 */
const LOADING_MS = 60_000;
/** The name of the file whose modification time is the time of the last scan. Session ids cannot contain a tilde. */
const SCANNED = "~scanned";

function notesFolder(server: ServerRecord): string {
  return join(dirname(server.home), "open");
}

/**
 * Makes or renews the note of a session. Call it before the server loads the session, or gets a model provider for it.
 * Call it again afterwards, in case another process did the same at that time.
 *
 * @returns the new stamp of the note. Null if a limit of this machine, such as a full disk, prevents it. Then no
 * process has its stamp in the note.
 */
export function noteOpened(server: ServerRecord, sessionId: string): string | null {
  const folder = notesFolder(server);
  const path = join(folder, sessionId);
  const stamp = randomUUID();
  try {
    inFolder(folder, () => writeFileSync(path, stamp, { mode: 0o600 }));
    return stamp;
  } catch (error) {
    if (ownLimit(error) === undefined) throw error;
    rmSync(path, { force: true }); // the next full scan makes the note again
    return null;
  }
}

/** The stamp in the note of a session. Null if there is no note, or if it cannot be read. */
export function stampOf(server: ServerRecord, sessionId: string): string | null {
  try {
    return readFileSync(join(notesFolder(server), sessionId), "utf8");
  } catch {
    return null; // the caller then gives the provider again
  }
}

export function knownLoaded(server: ServerRecord): string[] {
  const { home, process } = server;
  if (process === null) return [];
  const folder = notesFolder(server);
  const scanned = timeOf(join(folder, SCANNED));
  const started = Date.parse(server.startedAt ?? "");
  if (Date.now() - scanned > SCAN_EVERY_MS || scanned < started) {
    const loaded = loadedSessions(server);
    try {
      for (const id of [...loaded, SCANNED]) touch(folder, id);
    } catch (error) {
      if (ownLimit(error) === undefined) throw error;
      return loaded; // a full disk has no room for notes
    }
  }
  return notes(folder).filter((id) => {
    if (isLoadedBy(home, id, process)) return true;
    if (Date.now() - timeOf(join(folder, id)) > LOADING_MS) rmSync(join(folder, id), { force: true });
    return false;
  });
}

/**
 * The sessions in the server's memory (`isLoaded`), and those that the fleet loaded within the last minute but that are
 * not in its memory.
 */
export function lately(server: ServerRecord): { sessionId: string; isLoaded: boolean }[] {
  const loaded = new Set(knownLoaded(server));
  const ids = new Set([...loaded, ...notes(notesFolder(server))]);
  return [...ids].map((sessionId) => ({ sessionId, isLoaded: loaded.has(sessionId) }));
}

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
  inFolder(folder, () => closeSync(openSync(path, "a", 0o600)));
  const now = new Date();
  utimesSync(path, now, now);
}

interface Context {
  provider: Pick<SessionsContext["provider"], "lastGiven" | "noteGiven">;
}

interface Place {
  record: Pick<SessionRecord, "id">;
  server: ServerRecord;
}

/**
 * Whether the server got this provider for the session by the {@link giveProvider} of this process, and no process of
 * the fleet has loaded the session since, or given the server another provider.
 */
export function hasProvider(
  { provider: models }: Context,
  { record, server }: Place,
  provider: ProviderConfig,
): boolean {
  const last = models.lastGiven(record.id);
  return (
    last !== null &&
    last.launchId === server.launchId &&
    isDeepStrictEqual(last.provider, provider) &&
    stampOf(server, record.id) === last.stamp
  );
}

/**
 * Gives the server a provider for the session, and remembers that for {@link hasProvider}.
 *
 * @param give sends the provider to the server. Rejects if the server may not have taken it.
 */
export async function giveProvider(
  { provider: models }: Context,
  { record: { id }, server }: Place,
  provider: ProviderConfig,
  give: () => Promise<unknown>,
): Promise<void> {
  models.noteGiven(id, null);
  const stamp = noteOpened(server, id);
  await give();
  if (stamp !== null && stampOf(server, id) === stamp) {
    models.noteGiven(id, { provider, launchId: server.launchId, stamp });
    return;
  }
  // Another process gave the server its provider at the same time. Nobody knows which of the two providers came last.
  // So replace the stamp of that process, too.
  noteOpened(server, id);
}
