import { closeSync, mkdirSync, openSync, readdirSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { systemCode } from "../errors.js";
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

/** Marks a session as used, until disposed of. Waits for an eviction under way, which takes milliseconds. */
export async function markUse(server: ServerRecord, sessionId: string): Promise<UseMark> {
  const mark = writeMark(server, sessionId, "use");
  while (marked(server, "evict").has(sessionId)) await delay(EVICTION_POLL_MS);
  return { ...mark, isShared: () => marked(server, "use", mark.name).has(sessionId) };
}

/** Marks a session as being evicted, until disposed of; null if it is in use. */
export function markEviction(server: ServerRecord, sessionId: string): Disposable | null {
  const mark = writeMark(server, sessionId, "evict");
  if (!marked(server, "use").has(sessionId)) return mark;
  mark[Symbol.dispose]();
  return null;
}

/** Sessions that live processes use: they are being opened, or in a turn. */
export function usedSessions(server: ServerRecord): Set<string> {
  return marked(server, "use");
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

function marked(server: ServerRecord, wanted: Kind, except?: string): Set<string> {
  const sessions = new Set<string>();
  for (const name of namesIn(folderOf(server))) {
    if (name === except) continue;
    const [sessionId, kind, pid, startTicks, bootId] = name.split(SEPARATOR);
    if (kind !== wanted || sessionId === undefined) continue;
    const maker: ProcessIdentity = {
      ...ownIdentity(),
      pid: Number(pid),
      startTicks: startTicks ?? "",
      bootId: bootId ?? "",
    };
    if (isAlive(maker)) sessions.add(sessionId);
    else rmSync(join(folderOf(server), name), { force: true });
  }
  return sessions;
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch (error) {
    if (systemCode(error) === "ENOENT") return [];
    throw error;
  }
}
