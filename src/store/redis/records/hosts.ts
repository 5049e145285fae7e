import { parseObject as parseIfObject } from "../../../config/values/json.js";
import { printable } from "../../../config/values/text.js";
import { FleetError, isFleetError, quote } from "../../../errors.js";
import type { HostEntry, HostRecord } from "../../../model/host.js";
import type { Registry } from "../../../model/registry.js";
import type { Hosts } from "../../ports.js";
import type { Connection } from "../link/connection.js";
import type { Keys } from "../link/keys.js";
import { BEAT, FORGET_HOST, LEAVE_HOSTS, LOOK_AT_HOSTS } from "../scripts/host-scripts.js";
import { TELL_TIME } from "../scripts/scripts.js";
import { type Documents, newId, parseObject } from "./documents.js";
import { readForeignRegistry } from "./registry.js";

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
  return new FleetError("FLEET_HOST_TAKEN", message, {
    suggestions: ["export COPILOTFLEET_HOST_NAME=NAME", "copilotfleet top --once"],
  });
}
