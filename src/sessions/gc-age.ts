import { HeldFolder, walk } from "../runtime/held-folder.js";
import { isAlive, ownIdentity } from "../runtime/process-table.js";
import { HISTORY } from "../runtime/session-state.js";
import type { ProcessIdentity, SessionRecord, SessionUser } from "../store/store.js";

/** What gc goes by. Times are milliseconds since the epoch. */

export interface Measured {
  bytes: number;
  /** When any file inside was last written; of a folder without files, when it was made. */
  newestMs: number;
}

/** How many entries of one session's folder gc looks at to find its age. */
const MOST_ENTRIES = 10_000;

/**
 * Size and age of a session's folder by one walk, which ends early at the first file written after `youngAfterMs`: that
 * is `young`, and how young is nobody's concern. Links are not followed. Of a folder with very many files only the first
 * ones count, and its history always does: a user cannot keep a session for ever by filling its folder.
 */
export function measureFolder(path: string, youngAfterMs: number): Measured | "young" | "gone" {
  using folder = HeldFolder.open(path);
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

/** The TTL that a session is under, in milliseconds: its own, if it was given one. */
export function ttlOf(record: SessionRecord | null, ttlMs: number): number {
  return record?.ttlMs ?? ttlMs;
}

/** When the record was last used; `nowMs` if it does not say, so that nothing is deleted for a damaged date. */
export function lastUseOf(record: SessionRecord, nowMs: number): number {
  const used = Date.parse(record.lastUsedAt);
  return Number.isNaN(used) ? nowMs : used;
}

/** The hosts of the fleet, as far as they matter to whoever looks for processes. */
export interface HostsSeen {
  /** The name of this host; null where the store is one host's alone. */
  own: string | null;
  /** Whether each host that the directory knows is there. */
  there: ReadonlyMap<string, boolean>;
}

export const ONE_HOST: HostsSeen = { own: null, there: new Map() };

/** Whether an ephemeral session's use is over since the process that used it is. Its age does not matter then. */
export function isAbandoned(record: SessionRecord | null, hosts: HostsSeen): boolean {
  const usedBy = record?.usedBy ?? null;
  if (record?.persistence !== "ephemeral" || usedBy === null) return false;
  return isElsewhere(usedBy, hosts) ? hosts.there.get(usedBy.at ?? "") === false : isOver(usedBy);
}

/** Whether the process that an ephemeral session is for goes on. One of another host is there for as long as that is. */
export function isInUse({ usedBy }: SessionRecord, hosts: HostsSeen): boolean {
  if (usedBy === null) return false;
  return isElsewhere(usedBy, hosts) ? hosts.there.get(usedBy.at ?? "") === true : isAlive(usedBy);
}

function isElsewhere({ at }: SessionUser, { own }: HostsSeen): boolean {
  return at !== undefined && at !== own;
}

/** Of a process of another host or PID namespace nothing can be said: then the session's age decides. */
function isOver(identity: ProcessIdentity): boolean {
  const own = ownIdentity();
  const rebooted = identity.host === own.host && identity.bootId !== own.bootId;
  const visible = identity.bootId === own.bootId && identity.pidNamespace === own.pidNamespace;
  return rebooted || (visible && !isAlive(identity));
}
