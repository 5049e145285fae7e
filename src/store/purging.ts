import { FleetError, quote } from "../errors.js";
import type { Purge } from "../model/placement.js";
import type { Store } from "./ports.js";

type PurgeStores = Pick<Store, "purges"> & Partial<Pick<Store, "hosts">>;

/** The purges that a live host still has to finish. Leaves out those that only wait for hosts that may come back. */
export async function purgesUnderWay(store: PurgeStores): Promise<Purge[]> {
  const purges = await store.purges.list();
  return purges.length === 0 ? [] : purges.filter(await underWay(store));
}

export async function isBeingErased(store: PurgeStores, user: string): Promise<boolean> {
  const purge = await store.purges.read(user);
  return purge !== null && (await underWay(store))(purge);
}

async function underWay({ hosts }: PurgeStores): Promise<(purge: Purge) => boolean> {
  const live = ((await hosts?.list()) ?? []).flatMap(({ name, gone }) => (gone ? [] : [name]));
  return ({ pending, partlyDone }) =>
    partlyDone !== true || pending.some((host) => host === null || live.includes(host));
}

/** Call this before anything begins for a user. @throws FleetError `FLEET_PURGE_UNDER_WAY` during the user's purge */
export async function refuseErased(store: PurgeStores, user: string): Promise<void> {
  if (!(await isBeingErased(store, user))) return;
  throw new FleetError("FLEET_PURGE_UNDER_WAY", `The data of user ${quote(user)} is being erased.`, {
    suggestions: [`copilotfleet user purge ${user} # finishes it, and shows what remains`],
  });
}
