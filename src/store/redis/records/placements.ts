import { isDeepStrictEqual } from "node:util";
import type { Placement, UserPlacement } from "../../../model/placement.js";
import type { PlacementStore } from "../../ports.js";
import type { Documents } from "./documents.js";
import { RecordSet } from "./record-set.js";

export class PlacementDocuments implements PlacementStore {
  readonly #records: RecordSet<Placement>;

  constructor(documents: Documents) {
    const { keys } = documents;
    this.#records = new RecordSet(documents, keys.placements, (user) => keys.placement(user));
  }

  async read(user: string): Promise<Placement | null> {
    return await this.#records.read(user);
  }

  async record(user: string, from: Placement | null, to: Placement): Promise<Placement> {
    for (;;) {
      const found = await this.#records.find(user);
      if (found !== null && !isDeepStrictEqual(found.record, from)) return found.record;
      if (await this.#records.commit(user, found?.stored ?? null, JSON.stringify(to))) return to;
    }
  }

  async delete(user: string): Promise<void> {
    await this.#records.remove(user, null);
  }

  async list(): Promise<UserPlacement[]> {
    return [...(await this.#records.list())].map(([user, placement]) => ({ user, placement }));
  }
}
