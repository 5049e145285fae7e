import { basename, dirname } from "node:path";
import type { ProcessIdentity } from "../../model/process.js";
import type { SessionRecord, SessionUser } from "../../model/session.js";
import { HeldFolder, walk } from "../../runtime/files/held-folder.js";
import { HISTORY } from "../../runtime/history/session-state.js";
import { isAlive, ownIdentity } from "../../runtime/process/process-table.js";

export interface Measured {
  bytes: number;
  /**
   * When a file in the folder was last written (Unix time in ms). For a folder without files, when the folder itself last
   * changed.
   */
  newestMs: number;
}

const MOST_ENTRIES = 10_000;

/**
 * Measures the size and age of a session's folder in one walk. A file that was written after `youngAfterMs` makes the folder
 * `young` and ends the walk. Does not follow links. In a folder with more than `MOST_ENTRIES` entries, only the history and
 * the first files count, so that a user cannot keep a session for ever by filling its folder.
 */
export function measureFolder(path: string, youngAfterMs: number): Measured | "young" | "gone" {
  using parent = HeldFolder.open(dirname(path));
  using folder = parent?.folder(basename(path)) ?? null;
  if (folder === null) return "gone";
  const total: Measured = { bytes: 0, newestMs: Number.NEGATIVE_INFINITY };
  const history = folder.lstat(HISTORY);
  if (history !== undefined && history.mtimeMs > youngAfterMs) return "young";
  const result = walk(folder, { left: MOST_ENTRIES }, (stat) => {
    if (stat.mtimeMs > youngAfterMs) return false;
    total.bytes += stat.size;
    total.newestMs = Math.max(total.newestMs, stat.mtimeMs);
    return true;
  });
  if (result === "stopped") return "young";
  if (total.newestMs === Number.NEGATIVE_INFINITY) total.newestMs = folder.stats.mtimeMs;
  return total.newestMs > youngAfterMs ? "young" : total;
}

export function ttlOf(record: SessionRecord | null, ttlMs: number): number {
  return record?.ttlMs ?? ttlMs;
}

/**
 * When the session was last used (Unix time in ms). If the recorded date is damaged, returns `nowMs`, because such a date
 * must not lead to a deletion.
 */
export function lastUseOf(record: SessionRecord, nowMs: number): number {
  const used = Date.parse(record.lastUsedAt);
  return Number.isNaN(used) ? nowMs : used;
}

/** The hosts of the fleet. gc needs them to decide whether a process is alive. */
export interface HostsSeen {
  /** The name of this host; null if no other host uses the store. */
  own: string | null;
  /** For each host in the directory, whether it is alive. */
  there: ReadonlyMap<string, boolean>;
}

/** Whether the process that used an ephemeral session has ended. gc then deletes the session at any age. */
export function isAbandoned(record: SessionRecord | null, hosts: HostsSeen): boolean {
  const usedBy = record?.usedBy ?? null;
  if (record?.persistence !== "ephemeral" || usedBy === null) return false;
  return isElsewhere(usedBy, hosts) ? hosts.there.get(usedBy.at ?? "") === false : isOver(usedBy);
}

/**
 * Whether the process that uses an ephemeral session is alive. A process on another host counts as alive while its host is
 * alive.
 */
export function isInUse({ usedBy }: SessionRecord, hosts: HostsSeen): boolean {
  if (usedBy === null) return false;
  return isElsewhere(usedBy, hosts) ? hosts.there.get(usedBy.at ?? "") === true : isAlive(usedBy);
}

function isElsewhere({ at }: SessionUser, { own }: HostsSeen): boolean {
  return at !== undefined && at !== own;
}

/** Whether the process has ended. False if it was in another PID namespace, where we cannot see it. */
function isOver(identity: ProcessIdentity): boolean {
  const own = ownIdentity();
  const rebooted = identity.host === own.host && identity.bootId !== own.bootId;
  const visible = identity.bootId === own.bootId && identity.pidNamespace === own.pidNamespace;
  return rebooted || (visible && !isAlive(identity));
}
