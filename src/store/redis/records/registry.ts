import type { Registry } from "../../../model/registry.js";
import { EMPTY_REGISTRY } from "../../../model/registry.js";
import { applyChanges, type Outcome } from "../../batch.js";
import type { RegistryStore } from "../../ports.js";
import { UpdateQueue } from "../../update-queue.js";
import { type Connection, FIRST_REGISTRY } from "../link/connection.js";
import { busyError, corruptError } from "../link/failures.js";
import { type Documents, decode, parseObject, type Stored } from "./documents.js";
import type { RedisHosts } from "./hosts.js";
import type { WriterLock, WriterTurn } from "./writer-lock.js";

export interface RegistryOptions {
  key: string;
  /** Null if the fleet has no named hosts. */
  hosts: RedisHosts | null;
  /** Whether this registry is created together with the epoch. Any other registry is created by its first write. */
  isFounding: boolean;
  connection: Connection;
  documents: Documents;
  turns: WriterLock;
  deadlineMs: number;
  warn: (message: string) => void;
}

/** The base of the first commit to a registry that does not exist. */
const NONE: Stored = { head: "", revision: 0, data: EMPTY_REGISTRY };

/** The registry of one host, or of a fleet without named hosts. It is one document, which the first write creates. */
export class RegistryDocument implements RegistryStore {
  readonly #options: RegistryOptions;
  readonly #updates: UpdateQueue<Registry>;
  /** Updates from the moment they are requested, because some of them are not in the queue yet. */
  readonly #requested = new Set<Promise<unknown>>();
  /** The writer lock that this process holds, until a commit releases it. */
  #turn: (WriterTurn & { highest: number }) | undefined;
  /** The highest revision seen. A lower one shows that Redis has lost changes. */
  #highest = 0;

  constructor(options: RegistryOptions) {
    this.#options = options;
    const { deadlineMs, key } = options;
    this.#updates = new UpdateQueue({
      deadlineMs,
      enter: () => this.#enter(),
      attempt: (changes) => this.#attempt(changes),
      busy: () => busyError(key, deadlineMs),
      failure: (error) => error,
    });
  }

  async read(): Promise<Registry> {
    await this.#options.hosts?.assertOwn();
    const highest = this.#highest;
    return this.#parse(this.#found(await this.#read(), highest).data);
  }

  async update<T>(change: (draft: Registry) => T): Promise<T> {
    const update = this.#update(change);
    this.#requested.add(update);
    try {
      return await update;
    } finally {
      this.#requested.delete(update);
    }
  }

  async #update<T>(change: (draft: Registry) => T): Promise<T> {
    await this.#options.hosts?.assertOwn();
    return await this.#updates.update(change);
  }

  async settled(): Promise<void> {
    await Promise.allSettled(this.#requested);
  }

  async #enter(): Promise<() => Promise<void>> {
    const highest = this.#highest;
    const turn = await this.#options.turns.take();
    this.#turn = { ...turn, highest };
    return async () => {
      if (this.#turn === undefined) return;
      this.#turn = undefined;
      await this.#options.turns.leave().catch(() => "it expires by itself");
    };
  }

  async #attempt(changes: readonly ((draft: Registry) => unknown)[]): Promise<Outcome[] | undefined> {
    const { key, documents, turns } = this.#options;
    const base = await this.#base();
    const { data, outcomes } = applyChanges(base.data, (text) => this.#parse(text), changes);
    if (data === base.data) return outcomes;
    const turn = this.#turn === undefined ? "" : turns.token;
    if (!(await documents.commit(key, base, data, { turn }))) return undefined;
    this.#turn = undefined;
    this.#highest = Math.max(this.#highest, base.revision + 1);
    return outcomes;
  }

  /** The registry that came with the writer lock is used for one attempt only. */
  async #base(): Promise<Stored> {
    const { registry, highest = this.#highest } = this.#turn ?? {};
    if (this.#turn !== undefined) this.#turn.registry = undefined;
    return this.#found(registry === undefined ? await this.#read() : registry, highest);
  }

  async #read(): Promise<string | null> {
    return await this.#options.connection.readRegistry(this.#options.key);
  }

  /** @param highest The highest revision that was seen before the request was sent. */
  #found(text: string | null, highest: number): Stored {
    const { key, isFounding, warn } = this.#options;
    const stored = text === null && !isFounding ? NONE : decode(key, text ?? FIRST_REGISTRY);
    const { revision } = stored;
    if (revision < highest) {
      // A restart from an older save, or a failover, keeps the epoch but loses the latest changes.
      warn(
        `Redis went back in time: the registry was at revision ${highest} and is at ${revision}. Changes that were acknowledged in between are lost.`,
      );
      this.#highest = revision;
    }
    this.#highest = Math.max(this.#highest, revision);
    return stored;
  }

  #parse(data: string): Registry {
    return parseRegistryAt(this.#options.key, data);
  }
}

/** `servers` has no prototype, because a server id may be `__proto__`. */
function parseRegistryAt(key: string, data: string): Registry {
  const registry = parseObject<Registry>(key, data);
  const { servers } = registry;
  if (typeof servers !== "object" || servers === null) throw corruptError(key, "it does not contain servers");
  return { ...registry, servers: Object.assign(Object.create(null), servers) };
}

/** Reads a registry that this process does not write; an empty one if there is none. */
export async function readForeignRegistry(key: string, connection: Connection): Promise<Registry> {
  const text = await connection.readRegistry(key);
  return parseRegistryAt(key, text === null ? EMPTY_REGISTRY : decode(key, text).data);
}
