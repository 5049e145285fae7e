import { isRunning } from "../pool/server.js";
import { isInTurn } from "../runtime/client/activity.js";
import { RawConnection } from "../runtime/client/raw-connection.js";
import { deadline } from "../runtime/clock.js";
import { provenEndpoint } from "../runtime/process/probe.js";
import type { SessionsContext } from "./context.js";
import { recordFor } from "./find.js";
import { sessionLocked } from "./problems.js";

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
