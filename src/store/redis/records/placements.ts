import { isDeepStrictEqual } from "node:util";
import type { Placement, UserPlacement } from "../../../model/placement.js";
import type { PlacementStore } from "../../ports.js";
import type { Connection } from "../link/connection.js";
import type { Keys } from "../link/keys.js";
import { type Documents, parseObject } from "./documents.js";

/** How many records are read together. */
const AT_ONCE = 200;

/** One key for each user, and a set of all users, which only `list` reads. */
export class PlacementDocuments implements PlacementStore {
  readonly #connection: Connection;
  readonly #documents: Documents;
  readonly #keys: Keys;

  constructor(connection: Connection, documents: Documents, keys: Keys) {
    this.#connection = connection;
    this.#documents = documents;
    this.#keys = keys;
  }

  async read(user: string): Promise<Placement | null> {
    const key = this.#keys.placement(user);
    const [stored = null] = await this.#documents.read([key]);
    return stored && parseObject<Placement>(key, stored.data);
  }

  async record(user: string, from: Placement | null, to: Placement): Promise<Placement> {
    const key = this.#keys.placement(user);
    for (;;) {
      const [stored = null] = await this.#documents.read([key]);
      const current = stored && parseObject<Placement>(key, stored.data);
      if (current !== null && !isDeepStrictEqual(current, from)) return current;
      const listed = { set: this.#keys.placements, member: user };
      if (await this.#documents.commit(key, stored, JSON.stringify(to), { listed })) return to;
    }
  }

  async list(): Promise<UserPlacement[]> {
    const found = new Map<string, Placement>();
    for (let cursor = "0"; ; ) {
      const [next, users] = await this.#connection.scan(this.#keys.placements, cursor, AT_ONCE);
      const keys = users.map((user) => this.#keys.placement(user));
      const stored = await this.#documents.read(keys);
      for (const [index, user] of users.entries()) {
        const each = stored[index] ?? null;
        if (each !== null) found.set(user, parseObject<Placement>(keys[index] ?? "", each.data));
      }
      if (next === "0") return [...found].map(([user, placement]) => ({ user, placement }));
      cursor = next;
    }
  }
}
