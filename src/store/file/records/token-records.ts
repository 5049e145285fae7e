import { assertTokenId, isTokenId, type TokenRecord, tokenExists } from "../../../model/token.js";
import type { TokenStore } from "../../ports.js";
import type { StoreContext } from "../context.js";
import { RecordFiles } from "./record-files.js";

/** A token is issued and revoked but never changed. */
export class TokenRecords implements TokenStore {
  readonly #files: RecordFiles<TokenRecord>;

  /** A damaged file is an error, so that people can distinguish it from a missing token. */
  constructor(context: StoreContext) {
    this.#files = new RecordFiles(context, "tokens", (id) => `copilotfleet token revoke ${id}`);
  }

  async read(id: string): Promise<TokenRecord | null> {
    const record = isTokenId(id) ? this.#files.read(id) : null;
    return record?.id === id ? record : null;
  }

  async create(record: TokenRecord): Promise<void> {
    assertTokenId(record.id);
    if (!(await this.#files.create(record.id, record))) throw tokenExists(record.id);
  }

  async delete(id: string): Promise<boolean> {
    return isTokenId(id) && (await this.#files.delete(id));
  }

  async list(): Promise<TokenRecord[]> {
    return this.#files.list();
  }
}
