import { isFleetError } from "../errors.js";
import type { MovedUser } from "../fleet/options.js";
import type { Move } from "../hosts/rebalance.js";
import { mapConcurrently } from "../pool/concurrency.js";
import type { Store } from "../store/ports.js";
import type { FleetHosts } from "./fleet-hosts.js";

const AT_ONCE = 8;

/**
 * Moves users between hosts. Each session moves between its turns. A user whose host does not answer is moved, too:
 * requests for the user's sessions there are relayed to that host as before, until it releases the sessions or is gone.
 *
 * @param waitMs how long to wait for the sessions of one user to be between turns, in milliseconds
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
    // Record the new host first. From then on, it makes the user's new sessions and takes released ones. It picks the
    // shared server itself.
    const now = await store.placements.record(user, placed, { host: to, serverId: null });
    if (now.host !== to) return null;
  }
  const nothing = { user, from, to, released: [], kept: [], failure: null };
  try {
    const host = await hosts.thereUnder(from);
    // The sessions of a gone host are taken over when they are next used.
    return host === null ? nothing : { ...nothing, ...(await host.release({ user, waitMs })) };
  } catch (error) {
    if (!isFleetError(error)) throw error;
    return { ...nothing, failure: error.message };
  }
}
