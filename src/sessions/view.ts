import { join } from "node:path";
import { folderBytes, readSessionFolder, type SessionFolder } from "../runtime/session-state.js";
import type { ServerRecord, SessionRecord, SessionState } from "../store/store.js";

/** A session as `--json` and the library show it. Times are ISO 8601 in UTC. */
export interface SessionView {
  id: string;
  owner: string;
  purpose: string | null;
  kind: SessionRecord["kind"];
  members: string[];
  persistence: SessionRecord["persistence"];
  serverId: string;
  state: SessionState;
  model: string | null;
  createdAt: string;
  lastUsedAt: string;
  ttlMs: number | null;
  /** Bytes of its state on disk. */
  sizeBytes: number;
  lease: null;
}

/** Looks at the record, at its folder and at the server that should hold it. `runningPid` is null if none runs. */
export function viewSession(
  record: SessionRecord,
  server: ServerRecord | undefined,
  runningPid: number | null,
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
    state: stateOf(record, folder, runningPid),
    model: record.model,
    createdAt: record.createdAt,
    lastUsedAt: record.lastUsedAt,
    ttlMs: record.ttlMs,
    sizeBytes: folder === null ? 0 : folderBytes(join(folder.path)),
    lease: null,
  };
}

function stateOf(record: SessionRecord, folder: SessionFolder | null, runningPid: number | null): SessionState {
  if (runningPid !== null && folder?.loadedBy.includes(runningPid) === true) return "active";
  return record.turns > 0 && folder?.hasHistory !== true ? "gone" : "idle";
}
