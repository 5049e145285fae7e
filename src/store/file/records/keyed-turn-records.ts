import { readdirSync } from "node:fs";
import { join } from "node:path";
import { keyDigest, userDigest } from "../../../model/ids.js";
import type { KeyedTurn } from "../../../model/session.js";
import { isDamaged } from "../../failures.js";
import type { KeyedTurnStore, OnUnreadable } from "../../ports.js";
import type { StoreContext } from "../context.js";
import { readIfThere } from "../failures.js";
import { RecordFiles } from "./record-files.js";

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
