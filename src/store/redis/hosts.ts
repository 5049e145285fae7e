import { FleetError, isFleetError, quote } from "../../base/errors.js";
import type { HostEntry, HostRecord } from "../../base/host.js";
import type { Registry } from "../../base/server.js";
import { parseObject as parseIfObject, printable } from "../../base/values/text.js";
import { EMPTY_REGISTRY, type Hosts, type RegistryStore, withoutPrototype } from "../ports.js";
import { UpdateQueue, type Writes } from "../update-queue.js";
import { type Connection, FIRST_REGISTRY } from "./connection.js";
import { type Documents, newId, parseObject, type Stored, type TakenLock, type WriterLock } from "./documents.js";
import { corruptError, type Keys } from "./failures.js";
import { BEAT, FORGET_HOST, LEAVE_HOSTS, LOOK_AT_HOSTS, TELL_TIME } from "./scripts.js";

/** How many values {@link LOOK_AT_HOSTS} returns for each host. */
const FIELDS = 5;
/** How long after `HostEntry.until` an entry still counts, in milliseconds, because its heartbeat may arrive late. */
const LATE_MS = 15_000;
/** How many names of hosts to read at once. A fleet has far fewer hosts. */
const AT_ONCE = 1_000;

/** The directory of hosts. Redis's own clock decides which hosts are alive. */
export class RedisHosts implements Hosts {
  readonly own: string;
  readonly #instance: (() => string | null) | undefined;
  readonly #connection: Connection;
  readonly #keys: Keys;
  readonly #documents: Documents;
  readonly #warn: (message: string) => void;
  /** Identifies this process as the sender of its messages (`BEAT` and `LEAVE_HOSTS`) to Redis. */
  readonly #by = newId();
  /** The number of this process's last message. */
  #number = 0;
  #assured: Promise<void> | undefined;

  constructor(
    own: string,
    instance: (() => string | null) | undefined,
    documents: Documents,
    warn: (message: string) => void,
  ) {
    this.own = own;
    this.#instance = instance;
    this.#documents = documents;
    this.#connection = documents.connection;
    this.#keys = documents.keys;
    this.#warn = warn;
  }

  /**
   * Verifies once that no other machine uses this host's name, for example because somebody copied the configuration.
   * Otherwise this machine would mistake the other machine's registry for its own, and count all servers in it as dead.
   */
  async assertOwn(): Promise<void> {
    if (this.#instance === undefined) return;
    this.#assured ??= this.#look([this.own]).then((seen) => this.#refuseOther(seen));
    try {
      await this.#assured;
    } catch (error) {
      this.#assured = undefined;
      throw error;
    }
  }

  async beat(instance: string, entry: HostEntry, ttlMs: number): Promise<HostRecord> {
    const { own } = this;
    const asked = performance.now();
    const number = ++this.#number;
    const until = entry.until ?? (await this.#now()) + ttlMs;
    const text = JSON.stringify({ ...entry, until });
    const signature = this.#documents.signer.sign(this.#keys.host(own), contentOf(instance, text));
    const [word, term] = await this.#connection.run(
      BEAT,
      [this.#keys.host(own), this.#keys.hosts, this.#keys.fence],
      [own, instance, text, ttlMs, this.#by, number, signature],
    );
    // The signature of this entry was not verified, so the entry may contain anything.
    if (word !== "ok") throw taken(own, (parseIfObject(String(term)) ?? {}) as Partial<HostEntry>);
    // Count from the time of the request, because Redis ran the script later. So the result is never too large.
    const remainingMs = Math.max(0, Math.floor(ttlMs - (performance.now() - asked)));
    return { ...entry, name: own, instance, term: Number(term), gone: remainingMs === 0, remainingMs };
  }

  /** The time of Redis. Asks Redis, because the connection's estimate is too low after this machine was suspended. */
  async #now(): Promise<number> {
    const [, now] = await this.#connection.run(TELL_TIME, [], []);
    return Number(now);
  }

  async leave(instance: string): Promise<void> {
    try {
      await this.#connection.run(LEAVE_HOSTS, [this.#keys.host(this.own)], [instance, this.#by, ++this.#number]);
    } catch (error) {
      // If Redis lost all data, the directory was lost too, so there is nothing to leave.
      if (!isFleetError(error, "FLEET_STATE_LOST")) throw error;
    }
  }

  async forget(name: string): Promise<boolean> {
    const [word] = await this.#connection.run(FORGET_HOST, [this.#keys.host(name), this.#keys.hosts], [name]);
    return word === "forgotten";
  }

  async list(): Promise<HostRecord[]> {
    const names = new Set<string>();
    for await (const found of this.#connection.membersOf(this.#keys.hosts, AT_ONCE))
      for (const name of found) names.add(name);
    if (names.size === 0) return [];
    const hosts = await this.#look([...names].sort());
    this.#refuseOther(hosts);
    return hosts;
  }

  async #look(sorted: readonly string[]): Promise<HostRecord[]> {
    const keys = sorted.map((name) => this.#keys.host(name));
    const asked = performance.now();
    const [, now, ...values] = await this.#connection.run(LOOK_AT_HOSTS, keys, []);
    const tookMs = performance.now() - asked;
    return sorted.flatMap((name, index) => {
      const [instance, term, entry, leftMs, signature] = values.slice(index * FIELDS, (index + 1) * FIELDS);
      if (typeof entry !== "string") return []; // another process removed it after the scan
      if (!this.#isSigned(keys[index] ?? "", contentOf(String(instance), entry), String(signature ?? ""))) return [];
      const published = parseObject<HostEntry>(keys[index] ?? "", entry);
      // The signature covers the entry, but not the field by which Redis counts the host as alive. So somebody with
      // write access to Redis can put an old entry back and mark its host as alive. But `until` is signed, and shows
      // that the entry is old.
      const isCurrent = Number(now) <= (published.until ?? 0) + LATE_MS;
      // Do not use `remainingMs` here. After a slow answer, it may be 0 for a host that is alive.
      const gone = !(Number(leftMs) > 0 && isCurrent);
      const remainingMs = gone ? 0 : Math.max(0, Math.floor(Number(leftMs) - tookMs));
      return [{ ...published, name, instance: String(instance), term: Number(term), gone, remainingMs }];
    });
  }

  /** Whether a host of this fleet wrote the entry. The signature does not cover the term, which Redis sets. */
  #isSigned(key: string, content: string, signature: string): boolean {
    try {
      this.#documents.signer.assert(key, content, signature);
      return true;
    } catch (error) {
      if (!isFleetError(error, "FLEET_STATE_UNSIGNED")) throw error;
      this.#warn(error.message);
      return false;
    }
  }

  #refuseOther(hosts: readonly HostRecord[]): void {
    const same = hosts.find(({ name, gone }) => name === this.own && !gone);
    if (same !== undefined && this.#instance !== undefined && same.instance !== this.#instance()) {
      throw taken(this.own, same);
    }
  }

  async registryOf(name: string): Promise<Registry> {
    return await readForeignRegistry(this.#keys.registryOf(name), this.#documents);
  }
}

/** The part of a host's entry that its signature covers. */
export function contentOf(instance: string, entry: string): string {
  return `${instance}\n${entry}`;
}

function taken(name: string, { startedAt, door = null }: Partial<HostEntry>): FleetError {
  const where = door === null ? "" : `, and its front door is at ${printable(String(door))}`;
  const since = printable(String(startedAt ?? "an unknown time"));
  const message = `Another host of this fleet is called ${quote(name)}. It has served since ${since}${where}.`;
  return new FleetError("FLEET_SUPERVISOR_RUNNING", message, {
    suggestions: ["export COPILOTFLEET_HOST_NAME=NAME", "copilotfleet top --once"],
  });
}

interface RegistryOptions {
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
async function readForeignRegistry(key: string, documents: Documents): Promise<Registry> {
  return parseRegistryAt(key, (await readForeign(key, documents)).data);
}

async function readForeign(key: string, documents: Documents): Promise<Stored> {
  const text = await documents.connection.readRegistry(key);
  return text === null ? NONE : documents.decode(key, text);
}
