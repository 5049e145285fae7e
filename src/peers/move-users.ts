import { isFleetError } from "../errors.js";
import type { MovedUser } from "../fleet/options.js";
import type { Move } from "../hosts/rebalance.js";
import { mapConcurrently } from "../pool/concurrency.js";
import type { Store } from "../store/ports.js";
import type { FleetHosts } from "./fleet-hosts.js";

const AT_ONCE = 8;

/**
 * Moves users between hosts, each session between two of its turns. Also moves a user whose old host does not answer.
 * The other hosts then still relay requests for the user's sessions to the old host, until the old host releases the
 * sessions or counts as gone.
 *
 * @param waitMs for each user, how long to wait until no session of the user is in a turn, in milliseconds
 */
export async function moveUsers(
  moves: readonly Move[],
  waitMs: number,
  context: { store: Store; hosts: FleetHosts },
): Promise<MovedUser[]> {
  const moved = await mapConcurrently(moves, AT_ONCE, async (move) => await moveOne(move, waitMs, context));
  return moved.filter((each) => each !== null);
}

async function moveOne(
  { user, from, to }: Move,
  waitMs: number,
  { store, hosts }: { store: Store; hosts: FleetHosts },
): Promise<MovedUser | null> {
  const placed = await store.placements.read(user);
  if (placed?.host !== to) {
    if (placed?.host !== from) return null; // somebody has placed the user elsewhere since the moves were planned
    // Record the new host first, because it then creates the user's new sessions and takes over released ones. The new
    // host chooses the shared server itself.
    const now = await store.placements.record(user, placed, { host: to, serverId: null });
    if (now.host !== to) return null;
  }
  const nothing = { user, from, to, released: [], kept: [], failure: null };
  try {
    const host = await hosts.thereUnder(from);
    // If the old host is gone, other hosts take over its sessions at their next use.
    return host === null ? nothing : { ...nothing, ...(await host.release({ user, waitMs })) };
  } catch (error) {
    if (!isFleetError(error)) throw error;
    return { ...nothing, failure: error.message };
  }
}
