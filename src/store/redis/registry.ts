import { applyChanges, type Outcome } from "../batch.js";
import { EMPTY_REGISTRY, parseRegistry } from "../registry-data.js";
import type { Registry } from "../store.js";
import { UpdateQueue } from "../update-queue.js";
import { FIRST_REGISTRY } from "./connection.js";
import { type Documents, decode, type Stored } from "./documents.js";
import type { Epoch } from "./epoch.js";
import { busyError, corruptError } from "./failures.js";

export interface RegistryOptions {
  key: string;
  documents: Documents;
  epoch: Epoch;
  deadlineMs: number;
  warn: (message: string) => void;
}

/** The registry: one document, which is there from the first write on. */
export class RegistryDocument {
  readonly #options: RegistryOptions;
  readonly #updates: UpdateQueue<Registry>;
  /** The highest revision seen, to notice when there is less than there was. */
  #highest = 0;

  constructor(options: RegistryOptions) {
    this.#options = options;
    const { deadlineMs, key } = options;
    this.#updates = new UpdateQueue({
      deadlineMs,
      // There is no lock to wait for: who comes second tries again.
      enter: async () => async () => undefined,
      attempt: (changes) => this.#attempt(changes),
      busy: () => busyError(key, deadlineMs),
      failure: (error) => error,
    });
  }

  async read(): Promise<Registry> {
    return parseRegistry((await this.#load()).data);
  }

  update<T>(change: (draft: Registry) => T): Promise<T> {
    return this.#updates.update(change);
  }

  get pending(): Promise<void> | undefined {
    return this.#updates.pending;
  }

  async #attempt(changes: readonly ((draft: Registry) => unknown)[]): Promise<Outcome[] | undefined> {
    const base = await this.#load();
    const { data, outcomes } = applyChanges(base.data, parseRegistry, changes);
    if (data === base.data) return outcomes;
    return (await this.#options.documents.commit(this.#options.key, base, data)) ? outcomes : undefined;
  }

  async #load(): Promise<Stored> {
    const { key, documents, epoch } = this.#options;
    const [stored = null] = await documents.read([key]);
    if (stored === null && epoch.known !== undefined) throw epoch.lost("its registry is gone");
    if (stored === null) return decode(key, FIRST_REGISTRY);
    if (epoch.known === undefined) throw corruptError(key, "there is a registry, and no epoch");
    if (!hasServers(stored.data)) throw corruptError(key, "it holds no servers");
    this.#watch(stored.revision);
    return stored;
  }

  /** A restart from an older save, or a failover, keeps the epoch and takes the last changes away. */
  #watch(revision: number): void {
    if (revision < this.#highest) {
      this.#options.warn(
        `Redis went back in time: the registry was at revision ${this.#highest} and is at ${revision}. Changes that were acknowledged in between are lost.`,
      );
    }
    this.#highest = revision;
  }
}

function hasServers(data: string): boolean {
  if (data === EMPTY_REGISTRY) return true;
  const { servers } = JSON.parse(data) as { servers?: unknown };
  return typeof servers === "object" && servers !== null && !Array.isArray(servers);
}
