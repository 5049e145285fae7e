import { FleetError, isFleetError, quote } from "../../../errors.js";
import type { TokenRecord } from "../../../model/token.js";
import type { TokenStore } from "../../ports.js";
import type { Connection } from "../link/connection.js";
import type { Keys } from "../link/keys.js";
import { type Documents, parseObject } from "./documents.js";

const ID = /^[a-z0-9]{1,64}$/;
/** How many records are read together. */
const AT_ONCE = 200;

/**
 * One key for each token, and a set of all ids, which only `list` reads. A token is issued and revoked but never
 * changed.
 */
export class TokenDocuments implements TokenStore {
  readonly #connection: Connection;
  readonly #documents: Documents;
  readonly #keys: Keys;

  constructor(connection: Connection, documents: Documents, keys: Keys) {
    this.#connection = connection;
    this.#documents = documents;
    this.#keys = keys;
  }

  async read(id: string): Promise<TokenRecord | null> {
    if (!ID.test(id)) return null;
    const key = this.#keys.token(id);
    const [stored = null] = await this.#documents.read([key]);
    return stored && parseObject<TokenRecord>(key, stored.data);
  }

  async create(record: TokenRecord): Promise<void> {
    const { id } = record;
    if (!ID.test(id)) throw new FleetError("FLEET_INTERNAL", `${quote(id)} is not the id of a token.`);
    const listed = { set: this.#keys.tokens, member: id };
    if (await this.#documents.commit(this.#keys.token(id), null, JSON.stringify(record), { listed })) return;
    throw new FleetError("FLEET_INTERNAL", `There is already a token ${id}.`);
  }

  /** An unreadable record may be deleted, because nothing else could clear it away. */
  async delete(id: string): Promise<boolean> {
    if (!ID.test(id)) return false;
    await this.read(id).catch((error: unknown) => {
      if (!isFleetError(error, "FLEET_STATE_CORRUPT")) throw error;
    });
    const token = { key: this.#keys.token(id), set: this.#keys.tokens, member: id };
    return (await this.#documents.remove(token, null)) === "ok";
  }

  async list(): Promise<TokenRecord[]> {
    const records = new Map<string, TokenRecord>();
    for (let cursor = "0"; ; ) {
      const [next, ids] = await this.#connection.scan(this.#keys.tokens, cursor, AT_ONCE);
      const keys = ids.map((id) => this.#keys.token(id));
      const stored = await this.#documents.read(keys);
      for (const [index, id] of ids.entries()) {
        const each = stored[index] ?? null;
        // Null if it was revoked after the scan.
        if (each !== null) records.set(id, parseObject(keys[index] ?? "", each.data));
      }
      if (next === "0") return [...records.values()];
      cursor = next;
    }
  }
}
