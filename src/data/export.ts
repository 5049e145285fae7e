import { closeSync, fstatSync, readSync } from "node:fs";
import { join } from "node:path";
import { audited } from "../events/audited.js";
import type { SessionRecord } from "../model/session.js";
import { groupOfSession } from "../pool/server.js";
import { pause } from "../runtime/clock.js";
import { HeldFolder } from "../runtime/files/held-folder.js";
import { HISTORY, openSessionState } from "../runtime/history/session-state.js";
import type { SessionsContext } from "../sessions/context.js";
import { recordFor } from "../sessions/find.js";
import { sessionLost, sessionNotFound } from "../sessions/problems.js";
import { type Written, writeArchive } from "./archive/write.js";
import { betweenTurns } from "./between-turns.js";

/** How long to wait for the last line of a history, and how often to check, in milliseconds. */
const LINE_MS = 2_000;
const LINE_POLL_MS = 20;

export interface ExportRequest {
  id: string;
  /** Must be the owner. */
  user: string;
  waitMs?: number | undefined;
  signal: AbortSignal;
}

/**
 * Writes the archive of a session of this host to a new file. Waits until no turn runs, and makes new turns wait during
 * the export. Starts no server.
 *
 * @throws FleetError `FLEET_SESSION_NOT_FOUND`, also for a member; `FLEET_SESSION_LOST`, `FLEET_SESSION_LOCKED`,
 * `FLEET_SESSION_BUSY`, `FLEET_ARCHIVE_TOO_LARGE`, `FLEET_EVENTS_UNWRITABLE`.
 */
export async function exportHere(
  context: SessionsContext,
  path: string,
  { id, user, waitMs, signal }: ExportRequest,
): Promise<Written> {
  const { takeover, directory } = context;
  const found = await recordFor(context, id, user);
  if (found.owner !== user) throw sessionNotFound(id);
  await takeover.settle(found, signal);
  await directory.assertStorage();
  return await betweenTurns(context, found, { user, waitMs, signal }, async () => {
    // Read the record again, because a turn may have ended during the wait, or the session may have moved.
    const record = await takeover.settle(await recordFor(context, id, user), signal);
    using folder = await folderOf(context, record);
    if (record.turns > 0 && folder?.lstat(HISTORY) === undefined) throw sessionLost(record);
    if (folder !== null) await awaitLine(folder, signal);
    // The audit log must name each conversation that leaves the fleet.
    const about = { type: "session.exported", user, sessionId: id, serverId: record.serverId } as const;
    return await audited(context.events, about, async () => await writeArchive(path, record, folder));
  });
}

/** The session's folder. Null if it does not exist, because the session had no turn. */
async function folderOf({ store, directory }: SessionsContext, record: SessionRecord): Promise<HeldFolder | null> {
  const server = (await store.registry.read()).servers[record.serverId];
  if (server === undefined) {
    // After a takeover, this host may have no record of the session's server. Then look in the shared storage.
    const place = (await directory.places()).get(groupOfSession(record));
    return place === undefined ? null : HeldFolder.open(join(place, record.id));
  }
  using state = openSessionState(server.home);
  return state?.folder(record.id) ?? null;
}

/**
 * Waits up to {@link LINE_MS} until the history ends with a complete line, because after a turn, the server may still
 * be writing the last line.
 */
async function awaitLine(folder: HeldFolder, signal: AbortSignal): Promise<void> {
  const until = performance.now() + LINE_MS;
  while (!endsWithLine(folder) && performance.now() < until) await pause(LINE_POLL_MS, signal);
}

function endsWithLine(folder: HeldFolder): boolean {
  const fd = folder.file(HISTORY);
  if (fd === null) return true;
  try {
    const last = Buffer.alloc(1);
    const { size } = fstatSync(fd);
    return size === 0 || (readSync(fd, last, 0, 1, size - 1) === 1 && last[0] === 0x0a);
  } finally {
    closeSync(fd);
  }
}
