import { FleetError, isFleetError, quote } from "../base/errors.js";
import type { HostEntry, HostRecord } from "../base/host.js";
import type { Registry } from "../base/server.js";
import { printable } from "../base/values/text.js";
import { isDamaged } from "./failures.js";
import { type RegistryStore, withoutPrototype } from "./registry.js";
import { type FleetRows, kind } from "./rows.js";
import { Table } from "./table.js";

/** The state of a host. Its times are of the database's clock, in milliseconds. */
interface HostState {
  instance: string;
  term: number;
  entry: HostEntry;
  /**
   * The host counts as alive until then. Each heartbeat sets a later time, so an earlier record that is put back has
   * ended.
   */
  until: number;
}

export const HOSTS = kind<HostState>("host", { isVital: true });

/** The directory of the hosts of a fleet. A host is alive while its heartbeats arrive in time, by the store's clock. */
export class HostTable {
  readonly own: string;
  readonly #instance: (() => string | null) | undefined;
  readonly #table: Table<HostState>;
  readonly #registries: Table<Registry>;
  readonly #warn: (message: string) => void;
  #assured: Promise<void> | undefined;

  /** @param instance as for `openRedisStore` */
  constructor(
    own: string,
    instance: (() => string | null) | undefined,
    rows: FleetRows,
    warn: (message: string) => void,
  ) {
    this.own = own;
    this.#instance = instance;
    this.#table = new Table(rows, HOSTS);
    this.#registries = new Table(rows, REGISTRIES);
    this.#warn = warn;
  }

  /**
   * Verifies once that no other machine uses this host's name, for example because somebody copied the configuration.
   * Otherwise this machine would mistake the other machine's registry for its own, and count all servers in it as dead.
   */
  async assertOwn(): Promise<void> {
    if (this.#instance === undefined) return;
    this.#assured ??= this.list().then(() => undefined);
    try {
      await this.#assured;
    } catch (error) {
      this.#assured = undefined;
      throw error;
    }
  }

  /**
   * Enters this host into the directory, or renews its entry. After a late heartbeat, the host has a new term, because
   * other hosts may have taken over its sessions. If several heartbeats are under way, the last one counts.
   *
   * @param instance The random id of this host's state folder.
   * @param ttlMs How long the host stays alive without another heartbeat, in milliseconds.
   * @throws FleetError `FLEET_SUPERVISOR_RUNNING` when another instance is alive under this name.
   */
  async beat(instance: string, entry: HostEntry, ttlMs: number): Promise<HostRecord> {
    const asked = performance.now();
    const beat = async () =>
      await this.#table.update(this.own, (draft, now) => {
        const seen = draft.record;
        const isAlive = seen !== null && seen.until > now;
        if (isAlive && seen.instance !== instance) throw taken(this.own, seen.entry);
        // The term follows the clock, so that it grows even if the database has lost its data.
        const term = isAlive ? seen.term : Math.max((seen?.term ?? 0) + 1, now);
        draft.record = { instance, term, entry, until: entry.until ?? now + ttlMs };
        return term;
      });
    const term = await beat().catch(async (error: unknown) => {
      // Nobody else would replace a damaged entry.
      if (!isDamaged(error)) throw error;
      await this.#table.delete(this.own);
      return await beat();
    });
    // Count from the time of the request, because the database ran it later. So the result is never too large.
    const remainingMs = Math.max(0, Math.floor(ttlMs - (performance.now() - asked)));
    return { ...entry, name: this.own, instance, term, gone: remainingMs === 0, remainingMs };
  }

  /** Makes this host count as gone at once. Call it when no server runs on this host. */
  async leave(instance: string): Promise<void> {
    try {
      await this.#table.update(this.own, ({ record }) => {
        if (record?.instance === instance) record.until = 0;
      });
    } catch (error) {
      // If Redis lost all data, the directory was lost too, so there is nothing to leave.
      if (!isFleetError(error, "FLEET_STATE_LOST")) throw error;
    }
  }

  /** Removes a host from the directory if it is gone. Resolves with true if the host was removed. */
  async forget(name: string): Promise<boolean> {
    return await this.#table.update(name, (draft, now) => {
      const isGone = draft.record !== null && draft.record.until <= now;
      if (isGone) draft.record = null;
      return isGone;
    });
  }

  /** All hosts, including those that are gone, sorted by name. Costs one read per host. */
  async list(): Promise<HostRecord[]> {
    const asked = performance.now();
    const now = await this.#table.rows.now(HOSTS);
    const hosts: HostRecord[] = [];
    for await (const { id: name, record } of this.#table.each({}, (_, { message }) => this.#warn(message))) {
      const { entry, instance, term, until } = record;
      const gone = until <= now;
      // After a slow answer, the remaining time may be 0 for a host that is alive.
      const remainingMs = gone ? 0 : Math.max(0, Math.floor(until - now - (performance.now() - asked)));
      hosts.push({ ...entry, name, instance, term, gone, remainingMs });
    }
    const same = hosts.find(({ name, gone }) => name === this.own && !gone);
    if (same !== undefined && this.#instance !== undefined && same.instance !== this.#instance())
      throw taken(this.own, same);
    return hosts;
  }

  /** The registry of another host, for reading only. */
  async registryOf(name: string): Promise<Registry> {
    return withoutPrototype((await this.#registries.read(name)) ?? { servers: {} });
  }
}

function taken(name: string, { startedAt, door = null }: HostEntry): FleetError {
  const where = door === null ? "" : `, and its front door is at ${printable(door)}`;
  const message = `Another host of this fleet is called ${quote(name)}. It has served since ${printable(startedAt)}${where}.`;
  return new FleetError("FLEET_SUPERVISOR_RUNNING", message, {
    suggestions: ["export COPILOTFLEET_HOST_NAME=NAME", "copilotfleet top --once"],
  });
}

export const REGISTRIES = kind<Registry>("registry");

/** The registry of this host in a store that hosts share, so that other hosts can read it. */
export class RegistryRow implements RegistryStore {
  readonly #table: Table<Registry>;
  readonly #hosts: HostTable | null;

  /** @param hosts null if the fleet has no named hosts */
  constructor(rows: FleetRows, hosts: HostTable | null) {
    this.#table = new Table(rows, REGISTRIES);
    this.#hosts = hosts;
  }

  async read(): Promise<Registry> {
    await this.#hosts?.assertOwn();
    return withoutPrototype((await this.#table.read(this.#id)) ?? { servers: {} });
  }

  async update<T>(change: (draft: Registry) => T): Promise<T> {
    await this.#hosts?.assertOwn();
    return await this.#table.update(this.#id, (draft) => {
      draft.record = withoutPrototype(draft.record ?? { servers: {} });
      return change(draft.record);
    });
  }

  get #id(): string {
    return this.#hosts?.own ?? "";
  }
}
