import { join } from "node:path";
import { deadline } from "../base/clock.js";
import { systemCode } from "../base/errors.js";
import { removeTree } from "../base/held-folder.js";
import type { ServerRecord } from "../base/server.js";
import { isInTurn, RawConnection } from "../runtime/client/raw-connection.js";
import { unwritable } from "../runtime/files/server-folder.js";
import { openSessionState, ownPid, readSessionFolder } from "../runtime/history/session-state.js";
import { provenEndpoint } from "../runtime/process/probe.js";
import { isAlive } from "../runtime/process/process-table.js";
import { isRunning } from "../servers/server.js";
import { type SessionsContext, sessionBusy, sessionLocked } from "./problems.js";
import { recordFor } from "./view.js";

/**
 * Deletes a session's state from a server's home. If the server runs, asks it to delete the session first, because it
 * might otherwise write into a half-removed folder. Succeeds if there is no state.
 *
 * @param answerMs how long the server may take, in milliseconds
 * @throws FleetError `FLEET_SESSION_BUSY` while the session is in a turn; `FLEET_STATE_UNWRITABLE` when the disk
 * refuses the removal.
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

/** How often to check whether the user of a turn was suspended, in milliseconds. */
const SUSPENDED_MS = 2_000;

/** Aborts a user's turn in a session soon after the user is suspended. Dispose the result at the end of the turn. */
export function abortIfSuspended(
  context: Pick<SessionsContext, "store" | "directory" | "config">,
  id: string,
  user: string,
): Disposable {
  const check = async () => {
    const record = await context.store.limits.read(user);
    if (record?.suspended !== undefined) await abortTurnIn(context, id, user);
  };
  const timer = setInterval(() => void check().catch(() => "the next check tries again"), SUSPENDED_MS).unref();
  return { [Symbol.dispose]: () => clearInterval(timer) };
}

/**
 * Aborts the turn that runs in a session of this host, whichever process began it. In a collaborative session, a user
 * cannot abort a turn that runs under another user's lease.
 *
 * @returns whether a turn was running
 * @throws FleetError `FLEET_SESSION_NOT_FOUND`; `FLEET_SESSION_LOCKED` when another user has the lease;
 * `FLEET_SERVER_UNREACHABLE`.
 */
export async function abortTurnIn(
  { store, directory, config }: Pick<SessionsContext, "store" | "directory" | "config">,
  id: string,
  user: string,
): Promise<boolean> {
  const record = await recordFor({ store, directory }, id, user);
  const lease = record.kind === "collaborative" ? await store.leases.read(id) : null;
  if (lease !== null && lease.holder !== user) throw sessionLocked(id, lease);
  const server = (await store.registry.read()).servers[record.serverId];
  if (server === undefined || !isRunning(server)) return false;
  using limit = deadline(config.health.timeoutMs);
  await using connection = await RawConnection.open(provenEndpoint(server), limit.signal);
  if ((await isInTurn(connection, id, limit.signal)) !== true) return false;
  await connection.request("session.abort", { sessionId: id }, limit.signal);
  return true;
}
