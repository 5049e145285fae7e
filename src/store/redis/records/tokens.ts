import { isFleetError } from "../../../errors.js";
import { assertTokenId, isTokenId, type TokenRecord, tokenExists } from "../../../model/token.js";
import type { TokenStore } from "../../ports.js";
import type { Documents } from "./documents.js";
import { RecordSet } from "./record-set.js";

/** A token is issued and revoked but never changed. A token that the fleet did not sign counts as absent. */
export class TokenDocuments implements TokenStore {
  readonly #records: RecordSet<TokenRecord>;
  readonly #warn: (message: string) => void;

  constructor(documents: Documents, warn: (message: string) => void) {
    const { keys } = documents;
    this.#warn = warn;
    this.#records = new RecordSet(documents, keys.tokens, (id) => keys.token(id));
  }

  async read(id: string): Promise<TokenRecord | null> {
    if (!isTokenId(id)) return null;
    return await this.#records.read(id).catch((error: unknown) => {
      if (!isFleetError(error, "FLEET_STATE_UNSIGNED")) throw error;
      this.#warn(error.message);
      return null;
    });
  }

  async create(record: TokenRecord): Promise<void> {
    assertTokenId(record.id);
    if (!(await this.#records.commit(record.id, null, JSON.stringify(record)))) throw tokenExists(record.id);
  }

  async delete(id: string): Promise<boolean> {
    if (!isTokenId(id)) return false;
    // This throws for a record of a newer version. An unreadable record is deleted, because nothing else would do that.
    await this.#records.readIfReadable(id);
    return (await this.#records.remove(id, null)) === "ok";
  }

  async list(): Promise<TokenRecord[]> {
    const list = await this.#records.list((_, error) => {
      if (!isFleetError(error, "FLEET_STATE_UNSIGNED")) throw error;
      this.#warn(error.message);
    });
    return [...list.values()];
  }
}
