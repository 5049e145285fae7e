import { closeSync, linkSync, mkdirSync, openSync, readdirSync, unlinkSync } from "node:fs";
import { dirname, join } from "node:path";
import { pause } from "../base/clock.js";
import { systemCode } from "../base/errors.js";
import { ifThere } from "../base/if-there.js";
import type { ProcessIdentity, ServerRecord } from "../base/server.js";
import { isAlive, ownIdentity } from "../runtime/process/process-table.js";

/*
 * A marker is an empty file in a server's folder. Its name contains the id of a session, and the process of this host
 * that uses or evicts the session. A process first sets its own marker, and then looks for other markers. So if two
 * processes do this at the same time, at least one of them sees the other's marker, and no lock is needed. A marker
 * whose process died does not count.
 */
type Kind = "use" | "evict";

const SEPARATOR = "~"; // not in the alphabet of session ids
const EVICTION_POLL_MS = 2;
let sequence = 0;

/**
 * Marks the name of a source: an empty file that a process leaves in the folder, so that it can make every marker after
 * its first as a hard link to this file. On ext4, creating and deleting a file for each marker would take many times as
 * long, because ext4 does not reuse an inode within five seconds of its deletion, and searches for another one. The
 * name of a source contains no session. `usedSessions` removes the sources of dead processes.
 */
const SOURCE = "source";
/** The folders in which this process has set a marker. */
const markedFolders = new Set<string>();

function folderOf(server: ServerRecord): string {
  return join(dirname(server.home), "uses");
}

export interface UseMarker extends Disposable {
  /**
   * Whether the session already had another use marker when this marker was set. A marker that is set later finds this
   * marker.
   */
  readonly foundOthers: boolean;
  /** Whether the session has another use marker now. */
  isShared(): boolean;
}

/**
 * Sets a use marker, which stays until it is disposed. If a process is evicting the session, waits for the end of the
 * eviction. Resolves with null if the eviction takes longer than `waitMs` milliseconds.
 */
export async function setUseMarker(
  server: ServerRecord,
  sessionId: string,
  { waitMs, signal }: { waitMs: number; signal: AbortSignal | undefined },
): Promise<UseMarker | null> {
  const until = performance.now() + waitMs;
  const marker = writeMarker(server, sessionId, "use");
  const others = () => kindsOf(server, sessionId, marker.name);
  try {
    for (let kinds = others(); ; kinds = others()) {
      if (!kinds.has("evict")) return { ...marker, foundOthers: kinds.has("use"), isShared: () => others().has("use") };
      if (performance.now() > until) break;
      await pause(EVICTION_POLL_MS, signal);
    }
  } catch (error) {
    marker[Symbol.dispose]();
    throw error;
  }
  marker[Symbol.dispose]();
  return null;
}

/** Sets an eviction marker, which stays until it is disposed. Returns null if the session is in use. */
export function setEvictionMarker(server: ServerRecord, sessionId: string): Disposable | null {
  const marker = writeMarker(server, sessionId, "evict");
  try {
    if (!isUsed(server, sessionId)) return marker;
  } catch (error) {
    // A marker left behind would block the session for as long as this process lives.
    marker[Symbol.dispose]();
    throw error;
  }
  marker[Symbol.dispose]();
  return null;
}

export function isUsed(server: ServerRecord, sessionId: string): boolean {
  return kindsOf(server, sessionId).has("use");
}

/** The sessions that have a use marker, because they are being opened or are in a turn. */
export function usedSessions(server: ServerRecord): Set<string> {
  // Ask for all markers, so that `liveMarkers` removes the markers and sources of all dead processes.
  const markers = [...liveMarkers(server, () => true)];
  return new Set(markers.filter(({ kind }) => kind === "use").map(({ sessionId }) => sessionId));
}

/**
 * The kinds of the session's markers from live processes. Skips the markers of other sessions without checking their
 * processes.
 */
function kindsOf(server: ServerRecord, sessionId: string, except?: string): Set<string> {
  const markers = [...liveMarkers(server, (id, name) => id === sessionId && name !== except)];
  return new Set(markers.map(({ kind }) => kind));
}

function writeMarker(server: ServerRecord, sessionId: string, kind: Kind): Disposable & { name: string } {
  const folder = folderOf(server);
  const name = nameOf(sessionId, kind, sequence++);
  const path = join(folder, name);
  const source = join(folder, nameOf("", SOURCE, 0));
  const isFirst = !markedFolders.has(folder);
  if (isFirst || !link(source, path)) {
    inFolder(folder, () => closeSync(openSync(path, "wx", 0o600)));
    markedFolders.add(folder);
    if (!isFirst) link(path, source);
  }
  return { name, [Symbol.dispose]: () => remove(path) };
}

function nameOf(sessionId: string, kind: string, number: number): string {
  const { pid, startTicks, bootId } = ownIdentity();
  return [sessionId, kind, pid, startTicks, bootId, number].join(SEPARATOR);
}

/** Calls `write`. If the folder does not exist, makes the folder and calls `write` again. */
export function inFolder(folder: string, write: () => void): void {
  try {
    write();
  } catch (error) {
    if (systemCode(error) !== "ENOENT") throw error;
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    write();
  }
}

/** Makes `path` a hard link to `file`. @returns false if this fails, for example because `file` does not exist yet */
function link(file: string, path: string): boolean {
  try {
    linkSync(file, path);
    return true;
  } catch {
    return false;
  }
}

/** Yields the wanted markers of live processes. Removes the wanted markers of dead processes. */
function* liveMarkers(
  server: ServerRecord,
  isWanted: (sessionId: string, name: string) => boolean,
): Generator<{ sessionId: string; kind: string }> {
  const folder = folderOf(server);
  // Check each process only once, however many markers it has.
  const alive = new Map<string, boolean>();
  for (const name of ifThere(() => readdirSync(folder)) ?? []) {
    const [sessionId = "", kind = "", pid, startTicks = "", bootId = ""] = name.split(SEPARATOR);
    if (!isWanted(sessionId, name)) continue;
    const maker: ProcessIdentity = { ...ownIdentity(), pid: Number(pid), startTicks, bootId };
    const key = `${pid} ${startTicks} ${bootId}`;
    const lives = alive.get(key) ?? isAlive(maker);
    alive.set(key, lives);
    if (lives) yield { sessionId, kind };
    else remove(join(folder, name));
  }
}

/** Deletes a file by `unlinkSync`, because every turn removes its marker, and `rmSync` costs many times as much. */
function remove(path: string): void {
  ifThere(() => unlinkSync(path));
}
