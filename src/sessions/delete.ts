import { join } from "node:path";
import { systemCode } from "../errors.js";
import type { ServerRecord } from "../model/server.js";
import { isInTurn } from "../runtime/client/activity.js";
import { RawConnection } from "../runtime/client/raw-connection.js";
import { removeTree } from "../runtime/files/held-folder.js";
import { unwritable } from "../runtime/files/server-folder.js";
import { openSessionState, ownPid, readSessionFolder } from "../runtime/history/session-state.js";
import { provenEndpoint } from "../runtime/process/probe.js";
import { isAlive } from "../runtime/process/process-table.js";
import { sessionBusy } from "./problems.js";

/**
 * Deletes a session's state from a server's home. If the server runs, asks it to delete the session first, because it
 * might otherwise write into a half-removed folder. Succeeds if there is no state.
 *
 * @param answerMs how long the server may take, in milliseconds
 * @throws FleetError `FLEET_SESSION_BUSY` while the session is in a turn; `FLEET_STATE_UNWRITABLE` when the disk refuses
 * the removal.
 */
export async function deleteSessionState(server: ServerRecord, id: string, answerMs: number): Promise<void> {
  const folder = readSessionFolder(server.home, id);
  if (folder === null) return;
  if (server.process !== null && isAlive(server.process)) {
    await using connection = await RawConnection.open(provenEndpoint(server), AbortSignal.timeout(answerMs));
    const isLoaded = folder.loadedBy.includes(ownPid(server.process));
    if (isLoaded && (await isInTurn(connection, id)) === true) throw sessionBusy(id);
    await connection.request("session.delete", { sessionId: id });
  }
  // The server has ended or has unloaded the session, but the user's agent may still write into the session's folder.
  using state = openSessionState(server.home);
  if (state === null) return;
  try {
    state.regain();
    await removeTree(state.at(id), { left: Number.POSITIVE_INFINITY });
  } catch (error) {
    if (systemCode(error) !== "ENOENT") throw unwritable(join(state.realPath, id), error);
  }
}
