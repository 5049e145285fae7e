import { setTimeout as delay } from "node:timers/promises";
import { isFleetError } from "../../errors.js";
import type { HostDirectory, Whereabouts } from "../../hosts/directory.js";
import type { SessionRecord } from "../../model/session.js";
import type { Sessions } from "../../sessions/sessions.js";
import type { Store } from "../../store/ports.js";
import type { FleetHosts } from "../fleet-hosts.js";

export interface FindContext {
  store: Store;
  directory: HostDirectory;
  sessions: Sessions;
  hosts: FleetHosts;
}

/**
 * How many times to look for a session that is being moved, and how long to wait between the looks, in milliseconds.
 */
const TRIES = 3;
const PAUSE_MS = 300;

/**
 * The session's record, if the user may use the session. If the user's client created the session without the fleet, on
 * any host, this records it.
 *
 * @throws FleetError `FLEET_SESSION_NOT_FOUND`; and the error of a host that could not be asked.
 */
export async function findRecord(
  { store, sessions, hosts }: Omit<FindContext, "directory">,
  id: string,
  user: string,
): Promise<SessionRecord> {
  try {
    return await sessions.recordFor(id, user);
  } catch (error) {
    const isUnrecorded = isFleetError(error, "FLEET_SESSION_NOT_FOUND") && (await store.sessions.read(id)) === null;
    if (!isUnrecorded) throw error;
    for (const host of await hosts.othersOf(user)) {
      try {
        await host.sessionOf({ id, user });
        return await sessions.recordFor(id, user);
      } catch (there) {
        // A host that cannot be asked may have the session, so nobody knows that it does not exist.
        if (!isFleetError(there, "FLEET_SESSION_NOT_FOUND")) throw there;
      }
    }
    throw error;
  }
}

/**
 * Does `work` where the session is. If the session has just moved, looks for it again.
 *
 * @throws whatever `work` throws; FleetError `FLEET_SESSION_NOT_FOUND`, `FLEET_SESSION_STRANDED`, `FLEET_HOST_AWAY`.
 */
export async function whereItIs<T>(
  context: FindContext,
  id: string,
  user: string,
  work: (record: SessionRecord, where: Whereabouts) => Promise<T>,
): Promise<T> {
  for (let tries = 1; ; tries++) {
    const record = await findRecord(context, id, user);
    try {
      return await work(record, await context.directory.whereIs(record));
    } catch (error) {
      if (!isFleetError(error, "FLEET_SESSION_MOVED") || tries === TRIES) throw error;
      await delay(PAUSE_MS);
    }
  }
}
