import { closeSync, mkdirSync, openSync, readdirSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { systemCode } from "../errors.js";
import { pause } from "../runtime/deadline.js";
import { isAlive, ownIdentity } from "../runtime/process-table.js";
import type { ProcessIdentity, ServerRecord } from "../store/store.js";

/**
 * Who uses which session of a server right now, among the processes of this fleet on this host: empty files that name a
 * session and a process, in the server's own folder. A user of a session marks it first and then looks whether somebody
 * evicts it; who evicts marks that first and then looks whether somebody uses it. So never both go on, without a lock,
 * and a mark whose process died counts for nothing.
 */
type Kind = "use" | "evict";

const SEPARATOR = "~"; // not in the alphabet of session ids
const EVICTION_POLL_MS = 2;
let sequence = 0;

function folderOf(server: ServerRecord): string {
  return join(dirname(server.home), "uses");
}

export interface UseMark extends Disposable {
  /** Whether somebody else uses the session, too. */
  isShared(): boolean;
}

/**
 * Marks a session as used, until disposed of. Waits for an eviction under way, which takes milliseconds; null if that is
 * still under way after `waitMs`.
 *
 * @throws the signal's own reason.
 */
export async function markUse(
  server: ServerRecord,
  sessionId: string,
  { waitMs, signal }: { waitMs: number; signal: AbortSignal | undefined },
): Promise<UseMark | null> {
  const until = performance.now() + waitMs;
  const mark = writeMark(server, sessionId, "use");
  try {
    while (isMarked(server, sessionId, "evict")) {
      if (performance.now() > until) {
        mark[Symbol.dispose]();
        return null;
      }
      await pause(EVICTION_POLL_MS, signal);
    }
  } catch (error) {
    mark[Symbol.dispose]();
    throw error;
  }
  return { ...mark, isShared: () => isMarked(server, sessionId, "use", mark.name) };
}

/** Marks a session as being evicted, until disposed of; null if it is in use. */
export function markEviction(server: ServerRecord, sessionId: string): Disposable | null {
  const mark = writeMark(server, sessionId, "evict");
  try {
    if (!isMarked(server, sessionId, "use")) return mark;
  } catch (error) {
    // Left behind, it would keep everybody from the session for as long as this process lives.
    mark[Symbol.dispose]();
    throw error;
  }
  mark[Symbol.dispose]();
  return null;
}

/** Whether a live process uses the session: it is being opened, or in a turn. */
export function isUsed(server: ServerRecord, sessionId: string): boolean {
  return isMarked(server, sessionId, "use");
}

/** Sessions that live processes use: they are being opened, or in a turn. */
export function usedSessions(server: ServerRecord): Set<string> {
  // All marks are looked at, so that those of the dead go also where nobody comes back to the session.
  const marks = [...liveMarks(server, () => true)];
  return new Set(marks.filter(({ kind }) => kind === "use").map(({ sessionId }) => sessionId));
}

/** Asked in every turn, so the processes of other sessions' marks are not looked at. */
function isMarked(server: ServerRecord, sessionId: string, wanted: Kind, except?: string): boolean {
  const marks = liveMarks(server, (id, kind, name) => id === sessionId && kind === wanted && name !== except);
  return marks.next().done !== true;
}

function writeMark(server: ServerRecord, sessionId: string, kind: Kind): Disposable & { name: string } {
  const folder = folderOf(server);
  const { pid, startTicks, bootId } = ownIdentity();
  const name = [sessionId, kind, pid, startTicks, bootId, sequence++].join(SEPARATOR);
  const path = join(folder, name);
  try {
    closeSync(openSync(path, "wx", 0o600));
  } catch (error) {
    if (systemCode(error) !== "ENOENT") throw error;
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    closeSync(openSync(path, "wx", 0o600));
  }
  return { name, [Symbol.dispose]: () => rmSync(path, { force: true }) };
}

/** Those marks that are wanted, and whose makers live. Marks of the dead are removed on the way. */
function* liveMarks(
  server: ServerRecord,
  isWanted: (sessionId: string, kind: string | undefined, name: string) => boolean,
): Generator<{ sessionId: string; kind: string | undefined }> {
  const folder = folderOf(server);
  // A process is looked at once, however many marks it has.
  const alive = new Map<string, boolean>();
  for (const name of namesIn(folder)) {
    const [sessionId = "", kind, pid, startTicks = "", bootId = ""] = name.split(SEPARATOR);
    if (!isWanted(sessionId, kind, name)) continue;
    const maker: ProcessIdentity = { ...ownIdentity(), pid: Number(pid), startTicks, bootId };
    const key = `${pid} ${startTicks} ${bootId}`;
    const lives = alive.get(key) ?? isAlive(maker);
    alive.set(key, lives);
    if (lives) yield { sessionId, kind };
    else rmSync(join(folder, name), { force: true });
  }
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch (error) {
    if (systemCode(error) === "ENOENT") return [];
    throw error;
  }
}
