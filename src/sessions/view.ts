import type { Lease } from "../model/lease.js";
import type { OwnView, ProcessIdentity } from "../model/process.js";
import type { ServerRecord } from "../model/server.js";
import type { SessionRecord, SessionState } from "../model/session.js";
import { ownPid, readSessionFolder, type SessionFolder, sessionBytes } from "../runtime/history/session-state.js";

/** A session as `--json` and the library show it. Times are ISO 8601 in UTC. */
export interface SessionView {
  id: string;
  owner: string;
  purpose: string | null;
  /** The title that a user gave to the session, or else its first prompt; null if there is neither. */
  title: string | null;
  kind: SessionRecord["kind"];
  members: string[];
  persistence: SessionRecord["persistence"];
  serverId: string;
  /** The host that has the session, or had it last; null in a fleet on one host. */
  host: string | null;
  /**
   * Whether the session is on the disk of a host that does not serve. Nobody can use it until that host serves again.
   */
  stranded: boolean;
  state: SessionState;
  model: string | null;
  createdAt: string;
  lastUsedAt: string;
  /** How long gc keeps the session after its last use, in milliseconds; null: for ever. */
  ttlMs: number | null;
  /** When gc may delete the session if nobody uses it until then. Null if that is never, or if the time is not known. */
  expiresAt: string | null;
  /** The size of the session's state on disk, in bytes. */
  sizeBytes: number;
  /** The lease in force, without its token. */
  lease: Lease | null;
}

export interface SessionSurroundings {
  server: ServerRecord | undefined;
  /** The server's process; null if the server does not run. */
  process: ProcessIdentity | null;
  lease: Lease | null;
  /** The configured TTL, in milliseconds. It applies to a session without its own TTL. Null: for ever. */
  ttlMs: number | null;
  /** The name of this host; null in a fleet on one host. */
  own: string | null;
}

/** Builds a view from the record, the session's folder, and the server that should have the session. */
export function viewSession(
  record: SessionRecord,
  { server, process, lease, ttlMs, own }: SessionSurroundings,
): SessionView {
  const folder = server === undefined ? null : readSessionFolder(server.home, record.id);
  return {
    id: record.id,
    owner: record.owner,
    purpose: record.purpose,
    title: record.title ?? null,
    kind: record.kind,
    members: record.members,
    persistence: record.persistence,
    serverId: record.serverId,
    host: own === null ? null : (record.host ?? own),
    stranded: false,
    state: stateOf(record, folder, process),
    model: record.model,
    createdAt: record.createdAt,
    lastUsedAt: record.lastUsedAt,
    ttlMs: record.ttlMs ?? ttlMs,
    expiresAt: expiryOf(record.lastUsedAt, record.ttlMs ?? ttlMs),
    sizeBytes: server === undefined || folder === null ? 0 : sessionBytes(server.home, record.id),
    lease,
  };
}

/** The time that is `ttlMs` after the last use. */
export function expiryOf(lastUsedAt: string, ttlMs: number | null): string | null {
  const at = Date.parse(lastUsedAt) + (ttlMs ?? Number.NaN);
  return Number.isNaN(at) ? null : new Date(at).toISOString();
}

function stateOf(record: SessionRecord, folder: SessionFolder | null, running: OwnView | null): SessionState {
  if (running !== null && folder?.loadedBy.includes(ownPid(running)) === true) return "active";
  return record.turns > 0 && folder?.hasHistory !== true ? "gone" : "idle";
}

/** Builds a view from the record alone, for a session on a host that cannot be asked. */
export function viewRecord(
  record: SessionRecord,
  { ttlMs, lease, stranded }: Pick<SessionView, "lease" | "stranded"> & { ttlMs: number | null },
): SessionView {
  const unseen = { server: undefined, process: null, own: record.host ?? null, lease, ttlMs };
  return { ...viewSession(record, unseen), state: "idle", stranded };
}
