import type { Registry } from "../../../model/registry.js";
import type { RegistryStore } from "../../ports.js";
import { EMPTY_REGISTRY, withoutPrototype } from "../../registry-data.js";
import { UpdateQueue, type Writes } from "../../update-queue.js";
import { FIRST_REGISTRY } from "../link/connection.js";
import { corruptError } from "../link/failures.js";
import { type Documents, parseObject, type Stored } from "./documents.js";
import type { RedisHosts } from "./hosts.js";
import type { TakenLock, WriterLock } from "./writer-lock.js";

export interface RegistryOptions {
  /** Null if the fleet has no named hosts. */
  hosts: RedisHosts | null;
  documents: Documents;
  writerLock: WriterLock;
  writes: Writes;
  deadlineMs: number;
  warn: (message: string) => void;
}

/** The state from which the first commit of a registry starts. */
const NONE: Stored = { head: "", revision: 0, data: EMPTY_REGISTRY };

/** The registry of one host, or of a fleet without named hosts. */
export class RegistryDocument implements RegistryStore {
  readonly #options: RegistryOptions;
  readonly #key: string;
  readonly #updates: UpdateQueue<Registry, Stored>;
  /** The writer lock that this process holds, until a commit releases it. */
  #lock: (TakenLock & { highest: number }) | undefined;
  /** The highest revision so far, or since changes were lost. If Redis has a lower revision, it has lost changes. */
  #highest = 0;

  constructor(options: RegistryOptions) {
    this.#options = options;
    this.#key = options.documents.keys.registry;
    const { deadlineMs } = options;
    this.#updates = new UpdateQueue({
      where: this.#key,
      deadlineMs,
      enter: () => this.#enter(),
      load: () => this.#load(),
      parse: (data) => parseRegistryAt(this.#key, data),
      commit: (base, data) => this.#commit(base, data),
    });
  }

  async read(): Promise<Registry> {
    await this.#options.hosts?.assertOwn();
    const highest = this.#highest;
    return parseRegistryAt(this.#key, this.#found(await this.#read(), highest).data);
  }

  async update<T>(change: (draft: Registry) => T): Promise<T> {
    return await this.#options.writes.track(this.#update(change));
  }

  async #update<T>(change: (draft: Registry) => T): Promise<T> {
    await this.#options.hosts?.assertOwn();
    return await this.#updates.update(change);
  }

  async #enter(): Promise<() => Promise<void>> {
    const highest = this.#highest;
    const { writerLock } = this.#options;
    this.#lock = { ...(await writerLock.take()), highest };
    return async () => {
      if (this.#lock === undefined) return;
      this.#lock = undefined;
      await writerLock.leave().catch(() => "it expires by itself");
    };
  }

  /**
   * For the first attempt, returns the registry that came with the writer lock. For later attempts, and without the
   * writer lock, reads the registry from Redis.
   */
  async #load(): Promise<Stored> {
    const { registry, highest = this.#highest } = this.#lock ?? {};
    if (this.#lock !== undefined) this.#lock.registry = undefined;
    return this.#found(registry === undefined ? await this.#read() : registry, highest);
  }

  async #commit(base: Stored, data: string): Promise<boolean> {
    const { documents, writerLock } = this.#options;
    const writer = this.#lock === undefined ? "" : writerLock.token;
    if (!(await documents.commit(this.#key, base, data, { writer }))) return false;
    this.#lock = undefined;
    this.#highest = Math.max(this.#highest, base.revision + 1);
    return true;
  }

  async #read(): Promise<string | null> {
    return await this.#options.documents.connection.readRegistry(this.#key);
  }

  /** @param highest the highest revision that was seen before the request was sent */
  #found(text: string | null, highest: number): Stored {
    const { documents, warn } = this.#options;
    // If there is no registry, return the empty registry that the first commit will replace. In a fleet without named
    // hosts, that is FIRST_REGISTRY, which the first script that writes to an empty database creates.
    const isFounding = this.#key === documents.keys.founding;
    const stored = text === null && !isFounding ? NONE : documents.decode(this.#key, text ?? FIRST_REGISTRY);
    const { revision } = stored;
    if (revision < highest) {
      // Redis keeps the epoch but loses the latest changes if it restarts from an older save, or after a failover.
      warn(
        `Redis went back in time: the registry was at revision ${highest} and is at ${revision}. Changes that were acknowledged in between are lost.`,
      );
      this.#highest = revision;
    }
    this.#highest = Math.max(this.#highest, revision);
    return stored;
  }
}

function parseRegistryAt(key: string, data: string): Registry {
  const registry = parseObject<Registry>(key, data);
  if (typeof registry.servers !== "object" || registry.servers === null) {
    throw corruptError(key, "it does not contain servers");
  }
  return withoutPrototype(registry);
}

/** Reads the registry of another host. The result is empty if that host has no registry. */
export async function readForeignRegistry(key: string, documents: Documents): Promise<Registry> {
  return parseRegistryAt(key, (await readForeign(key, documents)).data);
}

async function readForeign(key: string, documents: Documents): Promise<Stored> {
  const text = await documents.connection.readRegistry(key);
  return text === null ? NONE : documents.decode(key, text);
}
