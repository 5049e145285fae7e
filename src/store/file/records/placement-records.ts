import { isDeepStrictEqual } from "node:util";
import { userDigest } from "../../../model/ids.js";
import type { Placement, UserPlacement } from "../../../model/placement.js";
import type { PlacementStore } from "../../ports.js";
import type { StoreContext } from "../context.js";
import { RecordFiles } from "./record-files.js";

/** The placements, in one file for each user. If a file is damaged, the fleet places the user again. */
export class PlacementRecords implements PlacementStore {
  readonly #files: RecordFiles<{ user: string } & Placement>;

  constructor(context: StoreContext) {
    this.#files = new RecordFiles(context, "placements", null);
  }

  async read(user: string): Promise<Placement | null> {
    const record = this.#files.read(userDigest(user));
    return record?.user === user ? viewPlacement(record).placement : null;
  }

  async delete(user: string): Promise<void> {
    await this.#files.delete(userDigest(user));
  }

  async list(): Promise<UserPlacement[]> {
    return this.#files.list().map(viewPlacement);
  }

  async record(user: string, from: Placement | null, to: Placement): Promise<Placement> {
    const name = userDigest(user);
    const record = { user, ...to };
    const current = await this.read(user);
    if (current !== null && !isDeepStrictEqual(current, from)) return current;
    if (current === null) {
      if (await this.#files.create(name, record)) return to;
      const winner = await this.read(user);
      if (winner !== null) return winner;
    }
    await this.#files.replace(name, record);
    return to;
  }
}

function viewPlacement({ user, ...placement }: { user: string } & Placement): UserPlacement {
  return { user, placement };
}
