import { isDeepStrictEqual } from "node:util";
import type { Placement, Purge, UserPlacement } from "../../base/host.js";
import { keyDigest, userDigest } from "../../base/ids.js";
import type { KeyedTurn } from "../../base/session.js";
import type { KeyedTurnStore, OnUnreadable, PlacementStore, PurgeStore } from "../ports.js";
import { type Documents, parseObject, RecordSet } from "./documents.js";
import { corruptError } from "./failures.js";

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

export class PlacementDocuments implements PlacementStore {
  readonly #records: RecordSet<Placement>;

  constructor(documents: Documents) {
    const { keys } = documents;
    this.#records = new RecordSet(documents, keys.placements, (user) => keys.placement(user));
  }

  async read(user: string): Promise<Placement | null> {
    return await this.#records.read(user);
  }

  async record(user: string, from: Placement | null, to: Placement): Promise<Placement> {
    for (;;) {
      const found = await this.#records.find(user);
      if (found !== null && !isDeepStrictEqual(found.record, from)) return found.record;
      if (await this.#records.commit(user, found?.stored ?? null, JSON.stringify(to))) return to;
    }
  }

  async delete(user: string): Promise<void> {
    await this.#records.remove(user, null);
  }

  async list(): Promise<UserPlacement[]> {
    return [...(await this.#records.list())].map(([user, placement]) => ({ user, placement }));
  }
}

/** The purges under way. Their keys contain a digest of the user. */
export class PurgeDocuments implements PurgeStore {
  readonly #records: RecordSet<Purge>;

  constructor(documents: Documents) {
    const { keys } = documents;
    this.#records = new RecordSet(documents, keys.purges, (name) => keys.purge(name));
  }

  async read(user: string): Promise<Purge | null> {
    return await this.#records.read(userDigest(user));
  }

  async begin(purge: Purge): Promise<Purge> {
    const name = userDigest(purge.user);
    for (;;) {
      const known = await this.#records.find(name);
      if (known !== null && known.record.partlyDone !== true) return known.record;
      const next = known === null ? purge : joined(purge, known.record);
      if (await this.#records.commit(name, known?.stored ?? null, JSON.stringify(next))) return next;
    }
  }

  async done(user: string, host: string | null): Promise<void> {
    const name = userDigest(user);
    for (;;) {
      const found = await this.#records.find(name);
      if (found === null) return;
      const pending = found.record.pending.filter((each) => each !== host);
      if (pending.length === 0) {
        if ((await this.#records.remove(name, found.stored)) !== "conflict") return;
      } else if (
        await this.#records.commit(name, found.stored, JSON.stringify({ ...found.record, pending, partlyDone: true }))
      )
        return;
    }
  }

  async list(): Promise<Purge[]> {
    return [...(await this.#records.list()).values()];
  }
}

/** A purge with what a host that was gone during an earlier purge of the user still has to erase. */
function joined(purge: Purge, { pending, sessions = [] }: Purge): Purge {
  return {
    ...purge,
    pending: [...new Set([...purge.pending, ...pending])],
    sessions: [...new Set([...(purge.sessions ?? []), ...sessions])],
  };
}

const KEY = /^[0-9a-f]{64}$/;

/** As `Store.pseudonymKey`. */
export async function pseudonymKey(documents: Documents, offered: string): Promise<string> {
  const name = documents.keys.pseudonymKey;
  for (;;) {
    const [stored = null] = await documents.read([name]);
    if (stored !== null) {
      const { key } = parseObject<{ key?: unknown }>(name, stored.data);
      if (typeof key === "string" && KEY.test(key)) return key;
      throw corruptError(name, "it does not contain a key of 64 hexadecimal digits");
    }
    if (await documents.commit(name, null, JSON.stringify({ key: offered }), {})) return offered;
  }
}
