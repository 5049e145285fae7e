import {
  assertTokenId,
  endedBy,
  isTokenId,
  type TokenEnd,
  type TokenRecord,
  tokenExists,
} from "../../../model/token.js";
import type { TokenStore } from "../../ports.js";
import type { StoreContext } from "../context.js";
import { RecordFiles } from "./record-files.js";
import { TokenNotes } from "./token-notes.js";

/**
 * The tokens. A token's record never changes. Notes beside it contain the token's last use and, if somebody made the
 * token expire earlier, its new expiry.
 */
export class TokenRecords implements TokenStore {
  readonly #files: RecordFiles<TokenRecord>;
  readonly #notes: TokenNotes;

  /** A damaged file is an error, so that people can distinguish it from a missing token. */
  constructor(context: StoreContext) {
    this.#files = new RecordFiles(context, "tokens", (id) => `copilotfleet token revoke ${id}`);
    this.#notes = new TokenNotes(context);
  }

  async read(id: string): Promise<TokenRecord | null> {
    const record = isTokenId(id) ? this.#files.read(id) : null;
    return record?.id === id ? this.#noted(record) : null;
  }

  async create(record: TokenRecord): Promise<void> {
    assertTokenId(record.id);
    if (!(await this.#files.create(record.id, record))) throw tokenExists(record.id);
  }

  async endBy(id: string, at: string): Promise<TokenRecord | null> {
    const record = await this.read(id);
    if (record === null) return null;
    if (endedBy(record, at) !== record) await this.#notes.write(id, "end", at);
    return await this.read(id);
  }

  async used(id: string, at: string): Promise<void> {
    if (isTokenId(id)) await this.#notes.write(id, "used", at);
  }

  async lastUses(ids: readonly string[]): Promise<(string | null)[]> {
    return ids.map((id) => (isTokenId(id) ? this.#notes.read(id, "used") : null));
  }

  async delete(id: string): Promise<boolean> {
    if (!isTokenId(id)) return false;
    const existed = await this.#files.delete(id);
    this.#notes.delete(id);
    return existed;
  }

  async list(): Promise<TokenRecord[]> {
    return this.#files.list().map((record) => this.#noted(record));
  }

  /** Does nothing. Nobody else may write to the state folder, so the records suffice. */
  async noteEnd(): Promise<void> {
    return undefined;
  }

  async notedEnds(): Promise<TokenEnd[]> {
    return [];
  }

  async isNotedRevoked(): Promise<boolean> {
    return false;
  }

  #noted(record: TokenRecord): TokenRecord {
    const end = isTokenId(record.id) ? this.#notes.read(record.id, "end") : null;
    return end === null ? record : endedBy(record, end);
  }
}
