import { readdirSync, readFileSync, renameSync } from "node:fs";
import { join } from "node:path";
import { isFleetError } from "../../base/errors.js";
import { assertTokenId, endedBy, isTokenId, type TokenEnd, type TokenRecord, tokenExists } from "../../base/token.js";
import { parseObject } from "../../base/values/text.js";
import { closeQuietly, makeFolder, scratchName, syncFolder, unlinkQuietly, writeNewFile } from "../file/durable.js";
import { mediumError, readIfThere } from "../file/failures.js";
import { ensureStateFolder } from "../file/state-folder.js";
import type { TokenStore } from "../ports.js";
import { type Documents, RecordSet } from "./documents.js";
import { NOTE } from "./scripts.js";

/**
 * The tokens. After a token is issued, only its expiry changes. A token that the fleet did not sign counts as absent,
 * and so does a token that this host remembers as revoked.
 */
export class TokenDocuments implements TokenStore {
  readonly #records: RecordSet<TokenRecord>;
  readonly #documents: Documents;
  readonly #ends: TokenEnds;
  readonly #warn: (message: string) => void;

  /** @param root the state folder of this host, with the expiries and revocations that this host remembers */
  constructor(documents: Documents, root: string, warn: (message: string) => void) {
    this.#ends = new TokenEnds(root);
    const { keys } = documents;
    this.#warn = warn;
    this.#documents = documents;
    this.#records = new RecordSet(documents, keys.tokens, (id) => keys.token(id), isTokenId);
  }

  async read(id: string): Promise<TokenRecord | null> {
    if (!isTokenId(id)) return null;
    const record = await this.#records.read(id).catch((error: unknown) => {
      if (!isFleetError(error, "FLEET_STATE_UNSIGNED")) throw error;
      this.#warn(error.message);
      return null;
    });
    return record && this.#ended(record);
  }

  /** The record with the expiry that this host remembers; null if this host remembers that the token was revoked. */
  #ended(record: TokenRecord): TokenRecord | null {
    const noted = record.role === "revoked" ? undefined : this.#ends.read(record.id);
    if (noted === undefined) return record;
    return noted.at === null ? null : endedBy(record, noted.at);
  }

  async noteEnd(end: TokenEnd): Promise<void> {
    await this.#ends.note(end);
  }

  async notedEnds(): Promise<TokenEnd[]> {
    return this.#ends.list();
  }

  async isNotedRevoked(id: string): Promise<boolean> {
    return this.#ends.read(id)?.at === null;
  }

  forgetExpiredEnds(now: number): void {
    this.#ends.forgetExpired(now);
  }

  async create(record: TokenRecord): Promise<void> {
    assertTokenId(record.id);
    if (!(await this.#records.commit(record.id, null, JSON.stringify(record)))) throw tokenExists(record.id);
  }

  async endBy(id: string, at: string): Promise<TokenRecord | null> {
    for (;;) {
      const found = isTokenId(id) ? await this.#records.find(id) : null;
      if (found === null) return null;
      const ended = endedBy(found.record, at);
      if (ended === found.record) return ended;
      if (await this.#records.commit(id, found.stored, JSON.stringify(ended))) return ended;
    }
  }

  async used(id: string, at: string): Promise<void> {
    const { connection, keys } = this.#documents;
    if (isTokenId(id)) await connection.run(NOTE, [keys.token(id), keys.tokenUsed(id)], [at]);
  }

  async lastUses(ids: readonly string[]): Promise<(string | null)[]> {
    const { connection, keys } = this.#documents;
    return ids.length === 0 ? [] : await connection.read(ids.map((id) => keys.tokenUsed(id)));
  }

  async delete(id: string): Promise<boolean> {
    if (!isTokenId(id)) return false;
    // Throws if a newer version wrote the record. Delete even an unreadable record, because nothing else would.
    await this.#records.readIfReadable(id);
    return (await this.#records.remove(id, null, { besides: [this.#documents.keys.tokenUsed(id)] })) === "ok";
  }

  async list(): Promise<TokenRecord[]> {
    // Only warn about an unreadable record, so that the other tokens can still be listed and revoked.
    const list = await this.#records.list((_, error) => this.#warn(error.message));
    return [...list.values()].flatMap((record) => this.#ended(record) ?? []);
  }
}

type Noted = Pick<TokenEnd, "at" | "until">;

/**
 * The expiries and revocations of tokens that this host remembers, each in a file of the state folder. Somebody with
 * write access to Redis can restore an earlier record of a token in Redis, but cannot change these files.
 */
class TokenEnds {
  readonly #root: string;
  readonly #folder: string;

  constructor(root: string) {
    this.#root = root;
    this.#folder = join(root, "token-ends");
  }

  /** The remembered expiry or revocation, or undefined. A file that cannot be parsed counts as a revocation. */
  read(id: string): Noted | undefined {
    const path = this.#pathOf(id);
    const text = readIfThere(path, () => readFileSync(path, "utf8"));
    if (text === undefined) return undefined;
    const { at, until } = parseObject(text) ?? {};
    return { at: typeof at === "string" ? at : null, until: typeof until === "string" ? until : null };
  }

  list(): TokenEnd[] {
    return this.#ids().flatMap((id) => {
      const noted = this.read(id);
      return noted === undefined ? [] : [{ id, ...noted }];
    });
  }

  /** Remembers an expiry or revocation durably, unless this host already remembers one that is not later. */
  async note({ id, at, until }: TokenEnd): Promise<void> {
    assertTokenId(id);
    const before = this.read(id);
    if (before !== undefined && (before.at === null || (at !== null && before.at <= at))) return;
    const temp = join(this.#root, scratchName("tmp"));
    try {
      ensureStateFolder(this.#root);
      makeFolder(this.#folder);
      closeQuietly(await writeNewFile(temp, Buffer.from(`${JSON.stringify({ at, until })}\n`)));
      renameSync(temp, this.#pathOf(id));
      await syncFolder(this.#folder);
    } catch (error) {
      throw mediumError("write", this.#folder, error);
    } finally {
      unlinkQuietly(temp);
    }
  }

  /** Forgets tokens that would have expired by now anyway. @param now milliseconds since the epoch, by Redis's clock */
  forgetExpired(now: number): void {
    for (const id of this.#ids()) {
      const until = this.read(id)?.until;
      if (typeof until === "string" && Date.parse(until) < now) unlinkQuietly(this.#pathOf(id));
    }
  }

  #ids(): string[] {
    return (readIfThere(this.#folder, () => readdirSync(this.#folder)) ?? []).filter(isTokenId);
  }

  #pathOf(id: string): string {
    return join(this.#folder, id);
  }
}
