import { type Documents, parseObject } from "./documents.js";
import type { Keys } from "./keys.js";

interface Placement {
  serverId: string;
}

/** A key a user. */
export class PlacementDocuments {
  readonly #documents: Documents;
  readonly #keys: Keys;

  constructor(documents: Documents, keys: Keys) {
    this.#documents = documents;
    this.#keys = keys;
  }

  async read(user: string): Promise<string | null> {
    const key = this.#keys.placement(user);
    const [stored = null] = await this.#documents.read([key]);
    return stored && parseObject<Placement>(key, stored.data).serverId;
  }

  /** Whoever is second has read what the first one wrote, and writes over it. */
  async record(user: string, serverId: string): Promise<void> {
    const key = this.#keys.placement(user);
    const data = JSON.stringify({ serverId } satisfies Placement);
    for (let done = false; !done; ) {
      const [stored = null] = await this.#documents.read([key]);
      done = await this.#documents.commit(key, stored, data, {});
    }
  }
}
