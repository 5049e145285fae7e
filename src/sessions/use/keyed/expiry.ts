import { FleetError } from "../../../errors.js";
import type { Store } from "../../../store/ports.js";

/** How long a key is valid, in milliseconds. */
export const TTL_MS = 24 * 3_600_000;
/** How many keys a user may have. Beyond that, a new key replaces the oldest keys whose turns are over. */
const MOST_OF_USER = 1_000;
/** How many old keys to remove at once, so that the fleet does not have to read all keys for every new key. */
const ROOM = 100;

/**
 * Makes room for another key of the user.
 *
 * @throws FleetError `FLEET_LIMIT_REACHED` when too many of the user's keys belong to turns that are not over.
 */
export async function makeRoom(store: Store["keyedTurns"], user: string): Promise<void> {
  const count = await store.count(user);
  if (count < MOST_OF_USER) return;
  const over = (await store.list(user)).filter(
    ({ outcome, expiresAt }) => outcome !== null || Date.parse(expiresAt) < Date.now(),
  );
  const oldest = over.sort((a, b) => Date.parse(a.expiresAt) - Date.parse(b.expiresAt)).slice(0, ROOM);
  for (const { key } of oldest) await store.delete(user, key);
  if (count - oldest.length < MOST_OF_USER) return;
  const message = `The user has ${MOST_OF_USER} idempotency keys whose turns are not over, which is the limit.`;
  throw new FleetError("FLEET_LIMIT_REACHED", message, { suggestions: ["Wait until these turns are over."] });
}

/** Deletes the expired keys of all users. */
export async function sweepKeyedTurns({ keyedTurns }: Pick<Store, "keyedTurns">): Promise<void> {
  for (const { user, key, expiresAt } of await keyedTurns.list(null))
    if (Date.parse(expiresAt) < Date.now()) await keyedTurns.delete(user, key);
}
