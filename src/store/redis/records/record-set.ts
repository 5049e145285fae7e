import { isDamaged } from "../../failures.js";
import type { OnUnreadable } from "../../ports.js";
import { type Documents, type Listed, parseObject, type Stored } from "./documents.js";

export const AT_ONCE = 200;

export interface Found<T> {
  stored: Stored;
  record: T;
}

/** The records of one kind: a document for each record, and a set with the names of all records for `list`. */
export class RecordSet<T extends object> {
  readonly #documents: Documents;
  readonly #set: string;
  readonly #keyOf: (name: string) => string;
  readonly #isName: (name: string) => boolean;

  /**
   * @param set the key of the set
   * @param isName whether a member of the set can be a name. The set is not signed, so it may have other members, too.
   */
  constructor(documents: Documents, set: string, keyOf: (name: string) => string, isName = (_: string) => true) {
    this.#isName = isName;
    this.#documents = documents;
    this.#set = set;
    this.#keyOf = keyOf;
  }

  async read(name: string): Promise<T | null> {
    return (await this.find(name))?.record ?? null;
  }

  /** Like {@link read}, but returns null for an unreadable record. */
  async readIfReadable(name: string): Promise<T | null> {
    return await this.read(name).catch((error: unknown) => {
      if (!isDamaged(error)) throw error;
      return null;
    });
  }

  async find(name: string): Promise<Found<T> | null> {
    const [found = null] = await this.findAll([name]);
    return found;
  }

  async findAll(names: readonly string[]): Promise<(Found<T> | null)[]> {
    const keys = names.map((name) => this.#keyOf(name));
    const documents = await this.#documents.read(keys);
    return documents.map(
      (stored, index) => stored && { stored, record: parseObject<T>(keys[index] ?? "", stored.data) },
    );
  }

  /** As `SessionStore.list`. */
  async list(onUnreadable?: OnUnreadable): Promise<Map<string, T>> {
    const records = new Map<string, T>();
    for await (const members of this.#documents.connection.membersOf(this.#set, AT_ONCE)) {
      const names = members.filter((name) => this.#isName(name));
      // Read even if there are no names, because a read detects whether the database has lost its data.
      const found = await (onUnreadable ? this.#findReadable(names, onUnreadable) : this.findAll(names));
      for (const [index, name] of names.entries()) {
        const record = found[index]?.record;
        if (record !== undefined) records.set(name, record); // undefined: deleted after the scan
      }
    }
    return records;
  }

  /** Like {@link findAll}, but reports damaged records. If there are any, reads each of `names` alone to find them. */
  async #findReadable(names: readonly string[], onUnreadable: OnUnreadable): Promise<(Found<T> | null)[]> {
    const unlessUnreadable = (name: string) => (error: unknown) => {
      if (!isDamaged(error)) throw error;
      onUnreadable(name, error);
      return null;
    };
    return await this.findAll(names).catch(async (error: unknown) => {
      if (!isDamaged(error)) throw error;
      return await Promise.all(names.map((name) => this.find(name).catch(unlessUnreadable(name))));
    });
  }

  /** As {@link Documents.commit}. @param also a second set that lists the record */
  async commit(name: string, from: Stored | null, data: string, also: string | null = null): Promise<boolean> {
    return await this.#documents.commit(this.#keyOf(name), from, data, { listed: this.#listed(name, also) });
  }

  /** Like {@link Documents.remove}. */
  async remove(
    name: string,
    from: Stored | null,
    { also = null, besides }: { also?: string | null; besides?: readonly string[] } = {},
  ): Promise<"ok" | "absent" | "conflict"> {
    return await this.#documents.remove(this.#keyOf(name), this.#listed(name, also), from, besides);
  }

  #listed(member: string, also: string | null): Listed {
    return { set: this.#set, member, also };
  }
}
