import { userDigest } from "../../model/ids.js";
import type { Purge } from "../../model/placement.js";
import type { PurgeStore } from "../ports.js";
import type { Documents } from "./records/documents.js";
import { RecordSet } from "./records/record-set.js";

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
