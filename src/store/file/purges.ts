import { userDigest } from "../../model/ids.js";
import type { Purge } from "../../model/placement.js";
import type { PurgeStore } from "../ports.js";
import type { StoreContext } from "./context.js";
import { RecordFiles } from "./records/record-files.js";

/** The records of the purges that are under way, each in its own file. */
export class PurgeRecords implements PurgeStore {
  readonly #files: RecordFiles<Purge>;

  constructor(context: StoreContext) {
    this.#files = new RecordFiles(context, "purges", () => "copilotfleet user purge USER");
  }

  async read(user: string): Promise<Purge | null> {
    return this.#files.read(userDigest(user));
  }

  async begin(purge: Purge): Promise<Purge> {
    const name = userDigest(purge.user);
    for (;;) {
      if (await this.#files.create(name, purge)) return purge;
      const earlier = this.#files.read(name);
      // If null, an earlier purge ended between `create` and `read`. Try again.
      if (earlier !== null) return earlier;
    }
  }

  async done(user: string): Promise<void> {
    // This store serves only one host. Once that host has erased its data, the purge is over.
    await this.#files.delete(userDigest(user));
  }

  async list(): Promise<Purge[]> {
    return this.#files.list();
  }
}
