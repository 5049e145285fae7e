import { readSessionFolder, type SessionFolder, sessionBytes } from "../runtime/session-state.js";
import type { Lease, ServerRecord, SessionRecord, SessionState } from "../store/store.js";

/** A session as `--json` and the library show it. Times are ISO 8601 in UTC. */
export interface SessionView {
  id: string;
  owner: string;
  purpose: string | null;
  kind: SessionRecord["kind"];
  members: string[];
  persistence: SessionRecord["persistence"];
  serverId: string;
  /** The host that has it, or had it last; null where the fleet is on one host. */
  host: string | null;
  /** It is on the disk of a host that is away: nobody can use it before that is back. */
  stranded: boolean;
  state: SessionState;
  model: string | null;
  createdAt: string;
  lastUsedAt: string;
  ttlMs: number | null;
  /** Bytes of its state on disk. */
  sizeBytes: number;
  /** The lease in force, never with its token. */
  lease: Lease | null;
}

export interface SessionSurroundings {
  /** The server that should hold it. */
  server: ServerRecord | undefined;
  /** That server's process, null if none runs. */
  pid: number | null;
  lease: Lease | null;
  /** The configured TTL, for a session without one of its own. */
  ttlMs: number;
  /** The name of this host; null where the fleet is on one. */
  own: string | null;
}

export interface RecordSurroundings {
  lease: Lease | null;
  ttlMs: number;
  stranded: boolean;
}

/** Looks at the record, at its folder and at the server that should hold it. */
export function viewSession(
  record: SessionRecord,
  { server, pid, lease, ttlMs, own }: SessionSurroundings,
): SessionView {
  const folder = server === undefined ? null : readSessionFolder(server.home, record.id);
  return {
    id: record.id,
    owner: record.owner,
    purpose: record.purpose,
    kind: record.kind,
    members: record.members,
    persistence: record.persistence,
    serverId: record.serverId,
    host: own === null ? null : (record.host ?? own),
    stranded: false,
    state: stateOf(record, folder, pid),
    model: record.model,
    createdAt: record.createdAt,
    lastUsedAt: record.lastUsedAt,
    ttlMs: record.ttlMs ?? ttlMs,
    sizeBytes: server === undefined || folder === null ? 0 : sessionBytes(server.home, record.id),
    lease,
  };
}

function stateOf(record: SessionRecord, folder: SessionFolder | null, runningPid: number | null): SessionState {
  if (runningPid !== null && folder?.loadedBy.includes(runningPid) === true) return "active";
  return record.turns > 0 && folder?.hasHistory !== true ? "gone" : "idle";
}

/** The session as its record alone tells, of a host that cannot be asked. */
export function viewRecord(record: SessionRecord, { ttlMs, lease, stranded }: RecordSurroundings): SessionView {
  const unseen = { server: undefined, pid: null, own: record.host ?? null, lease, ttlMs };
  return { ...viewSession(record, unseen), state: "idle", stranded };
}
