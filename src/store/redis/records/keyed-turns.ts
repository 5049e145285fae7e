import { keyDigest, userDigest } from "../../../model/ids.js";
import type { KeyedTurn } from "../../../model/session.js";
import type { KeyedTurnStore, OnUnreadable } from "../../ports.js";
import type { Documents } from "./documents.js";
import { RecordSet } from "./record-set.js";

/** The prompts with idempotency keys: a document for each prompt, a set of all prompts, and a set for each user. */
export class KeyedTurnDocuments implements KeyedTurnStore {
  readonly #documents: Documents;
  readonly #records: RecordSet<KeyedTurn>;

  constructor(documents: Documents) {
    this.#documents = documents;
    this.#records = this.#listedIn(documents.keys.keyedTurns);
  }

  async read(user: string, key: string): Promise<KeyedTurn | null> {
    return await this.#records.read(nameOf(user, key));
  }

  async create(record: KeyedTurn): Promise<boolean> {
    const { user, key } = record;
    return await this.#records.commit(nameOf(user, key), null, JSON.stringify(record), this.#setOf(user));
  }

  async replace(record: KeyedTurn): Promise<void> {
    const { user, key } = record;
    const name = nameOf(user, key);
    for (;;) {
      const found = await this.#records.find(name);
      const isDone = await this.#records.commit(name, found?.stored ?? null, JSON.stringify(record), this.#setOf(user));
      if (isDone) return;
    }
  }

  async delete(user: string, key: string): Promise<void> {
    await this.#records.remove(nameOf(user, key), null, { also: this.#setOf(user) });
  }

  async count(user: string): Promise<number> {
    return await this.#documents.count(this.#setOf(user));
  }

  async list(user: string | null, onUnreadable: OnUnreadable = () => undefined): Promise<KeyedTurn[]> {
    const records = user === null ? this.#records : this.#listedIn(this.#setOf(user));
    return [...(await records.list(onUnreadable)).values()];
  }

  #listedIn(set: string): RecordSet<KeyedTurn> {
    return new RecordSet(this.#documents, set, (name) => this.#documents.keys.keyedTurn(name));
  }

  #setOf(user: string): string {
    return this.#documents.keys.keyedTurnsOf(userDigest(user));
  }
}

function nameOf(user: string, key: string): string {
  return `${userDigest(user)}-${keyDigest(key)}`;
}
