import { FleetError, quote } from "../base/errors.js";
import type { Purge } from "../base/host.js";
import { type FleetRows, kind } from "./rows.js";
import type { Store } from "./store.js";
import { Table } from "./table.js";

export const PURGES = kind<Purge>("purge");

export class PurgeTable {
  readonly #table: Table<Purge>;

  constructor(rows: FleetRows) {
    this.#table = new Table(rows, PURGES);
  }

  /** The purge of a user, or null. Costs one read. */
  async read(user: string): Promise<Purge | null> {
    return await this.#table.read(user);
  }

  /** Records that a purge has begun. Resolves with the record, which is the earlier one if one is under way. */
  async begin(purge: Purge): Promise<Purge> {
    return await this.#table.update(purge.user, (draft) => {
      const known = draft.record;
      if (known !== null && known.partlyDone === undefined) return known;
      draft.record = known === null ? purge : joined(purge, known);
      return draft.record;
    });
  }

  /** Records that a host has erased its part of the data. The call for the last host ends the purge. */
  async done(user: string, host: string | null): Promise<void> {
    await this.#table.update(user, (draft) => {
      if (draft.record === null) return;
      // A fleet whose host has no name has no other hosts.
      const pending = host === null ? [] : draft.record.pending.filter((each) => each !== host);
      draft.record = pending.length === 0 ? null : { ...draft.record, pending, partlyDone: true };
    });
  }

  async list(): Promise<Purge[]> {
    return await this.#table.list();
  }
}

/** A purge with what a host that was gone during an earlier purge of the user still has to erase. */
function joined(purge: Purge, { pending, sessions = [] }: Purge): Purge {
  return {
    ...purge,
    pending: [...new Set([...purge.pending, ...pending])],
    sessions: [...new Set([...(purge.sessions ?? []), ...sessions])],
  };
}

/** One record, with the key for the pseudonyms on all hosts. */

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
