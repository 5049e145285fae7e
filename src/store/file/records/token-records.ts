import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { rename } from "node:fs/promises";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import type { Placement, UserPlacement } from "../../../base/host.js";
import { keyDigest, userDigest } from "../../../base/ids.js";
import type { KeyedTurn } from "../../../base/session.js";
import {
  assertTokenId,
  endedBy,
  isTokenId,
  type TokenEnd,
  type TokenRecord,
  tokenExists,
} from "../../../base/token.js";
import { isDamaged } from "../../failures.js";
import type { KeyedTurnStore, OnUnreadable, PlacementStore, TokenStore } from "../../ports.js";
import { closeQuietly, scratchName, syncFolder, unlinkQuietly, writeNewFile } from "../durable.js";
import { readIfThere, type StoreContext, writing } from "../failures.js";
import { RecordFiles } from "./record-folder.js";

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

/** `end`: the time at which a token expires, if it is earlier than in its record. `used`: the time of its last use. */
type Kind = "end" | "used";

/**
 * Notes about tokens, each in a file beside the token's record. The record never changes, so that no write can bring a
 * revoked token back. A note without a record means nothing.
 */
class TokenNotes {
  readonly #context: StoreContext;
  readonly #folder: string;

  constructor(context: StoreContext) {
    this.#context = context;
    this.#folder = join(context.root, "tokens");
  }

  read(id: string, kind: Kind): string | null {
    const path = this.#pathOf(id, kind);
    return readIfThere(path, () => readFileSync(path, "utf8")) ?? null;
  }

  /** Writes a note, unless the token has no record. Only an `end` is synced to disk. */
  async write(id: string, kind: Kind, text: string): Promise<void> {
    this.#context.checkRoot();
    const record = join(this.#folder, `${id}.json`);
    if (!existsSync(record)) return;
    const path = this.#pathOf(id, kind);
    const temp = join(this.#context.root, scratchName("tmp"));
    await writing(this.#folder, async () => {
      try {
        if (kind === "end") closeQuietly(await writeNewFile(temp, Buffer.from(text)));
        else writeFileSync(temp, text, { mode: 0o600, flag: "wx" });
        await rename(temp, path);
        if (kind === "end") await syncFolder(this.#folder);
      } finally {
        unlinkQuietly(temp);
      }
    });
    // The token may have been deleted during the write. A deletion removes the record first and the notes afterwards.
    // So if the record still exists, a later deletion removes this note.
    if (!existsSync(record)) unlinkQuietly(path);
  }

  delete(id: string): void {
    for (const kind of ["end", "used"] as const) unlinkQuietly(this.#pathOf(id, kind));
  }

  #pathOf(id: string, kind: Kind): string {
    return join(this.#folder, `${id}.${kind}`);
  }
}

const FOLDER = "keyed-turns";

/** The prompts with idempotency keys: a folder for each user, with one file for each key. */
export class KeyedTurnRecords implements KeyedTurnStore {
  readonly #context: StoreContext;

  constructor(context: StoreContext) {
    this.#context = context;
  }

  async read(user: string, key: string): Promise<KeyedTurn | null> {
    return this.#of(userDigest(user)).read(keyDigest(key));
  }

  async create(record: KeyedTurn): Promise<boolean> {
    return await this.#of(userDigest(record.user)).create(keyDigest(record.key), record);
  }

  async replace(record: KeyedTurn): Promise<void> {
    await this.#of(userDigest(record.user)).replace(keyDigest(record.key), record);
  }

  async delete(user: string, key: string): Promise<void> {
    await this.#of(userDigest(user)).delete(keyDigest(key));
  }

  async count(user: string): Promise<number> {
    return this.#of(userDigest(user)).names().length;
  }

  async list(user: string | null, onUnreadable: OnUnreadable = () => undefined): Promise<KeyedTurn[]> {
    const { root, checkRoot } = this.#context;
    checkRoot();
    const folder = join(root, FOLDER);
    const users = user === null ? (readIfThere(folder, () => readdirSync(folder)) ?? []) : [userDigest(user)];
    return users.flatMap((digest) => {
      const files = this.#of(digest);
      return files.names().flatMap((name) => {
        try {
          return files.read(name) ?? [];
        } catch (error) {
          if (!isDamaged(error)) throw error;
          onUnreadable(name, error);
          return [];
        }
      });
    });
  }

  /** The records of one user. A damaged record is an error: if it counted as missing, its prompt might run twice. */
  #of(digest: string): RecordFiles<KeyedTurn> {
    return new RecordFiles(this.#context, join(FOLDER, digest), () => "Send the request with another key.");
  }
}

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
