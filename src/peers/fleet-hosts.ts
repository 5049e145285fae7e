import { type FleetError, isFleetError, quote } from "../errors.js";
import type { Whereabouts } from "../hosts/directory.js";
import { hostAway } from "../hosts/problems.js";
import type { HostRecord } from "../model/host.js";
import { serverIdOf } from "../model/ids.js";
import type { Registry } from "../model/registry.js";
import type { ServerRecord } from "../model/server.js";
import { serverNotFound } from "../pool/pool.js";
import { referenceOf } from "../pool/server.js";
import type { Host } from "./host.js";
import type { LocalHost } from "./local-host.js";
import { RemoteHost, type RemoteHostContext } from "./remote-host.js";

export interface FleetHostsContext extends RemoteHostContext {
  own: LocalHost;
  /** Called about hosts that do not answer when all are asked. */
  warn: (message: string) => void;
}

/** A recorded server, and the host that has it. */
export interface FoundServer {
  host: Host;
  server: ServerRecord;
}

/** A host that could not be asked, and the reason. */
export interface Missing {
  host: string;
  /** True if the host counts as gone, false if it counts as alive and did not answer. */
  isGone: boolean;
  error: FleetError;
}

export interface Gathered<T> {
  /** The answer of each host that answered. */
  answers: { host: Host; answer: T }[];
  /** The hosts that did not answer, or are gone. */
  missing: Missing[];
}

/** The hosts of the fleet, including this one, and the choice of the host to ask. */
export class FleetHosts {
  readonly #context: FleetHostsContext;

  constructor(context: FleetHostsContext) {
    this.#context = context;
  }

  get own(): LocalHost {
    return this.#context.own;
  }

  /** The names of all known hosts, including this one. Empty if the fleet is on one host. */
  async names(): Promise<string[]> {
    const { own, directory } = this.#context;
    if (own.name === null) return [];
    return [...new Set([own.name, ...(await directory.list()).map(({ name }) => name)])].sort();
  }

  /** The host at the given place. */
  at(where: Whereabouts): Host {
    return where.here ? this.#context.own : new RemoteHost(where.host, this.#context);
  }

  /**
   * The host that a user is placed on. Places the user if necessary.
   *
   * @throws FleetError `FLEET_HOST_AWAY`.
   */
  async ofUser(user: string): Promise<Host> {
    return this.at(await this.#context.directory.place(user));
  }

  /**
   * Finds the server with this id, or else the server of the user with this id, or else the only server whose id begins
   * with it. A user may have servers on several hosts, all with the same id. `ID@HOST` then names the host.
   *
   * @throws FleetError `FLEET_SERVER_NOT_FOUND`, also when several servers match; `FLEET_HOST_AWAY` when its host is
   * gone.
   */
  async find(reference: string): Promise<FoundServer> {
    const at = reference.lastIndexOf("@");
    const [id, host] = at === -1 ? [reference, undefined] : [reference.slice(0, at), reference.slice(at + 1)];
    const all = (await this.#registries()).flatMap(({ name, registry }) =>
      Object.values(registry.servers).map((server) => ({ name, server })),
    );
    const there = all.filter(({ name }) => host === undefined || name === host);
    const readings = [
      there.filter(({ server }) => server.id === id),
      // The "@" may be part of the user's id.
      all.filter(({ server }) => isOfUser(server, reference)),
      there.filter(({ server }) => isOfUser(server, id)),
      there.filter(({ server }) => server.id.startsWith(id)),
    ];
    const candidates = readings.find((reading) => reading.length > 0) ?? [];
    const [found] = candidates;
    if (id === "" || found === undefined || candidates.length > 1) {
      throw serverNotFound(
        `server ${quote(reference)}`,
        id === "" ? [] : candidates.map(({ name, server }) => referenceOf({ id: server.id, hostName: name })),
      );
    }
    return { host: await this.#named(found.name), server: found.server };
  }

  /**
   * The recorded server of a user. If several hosts have one, it is the server on the host where the user is placed.
   *
   * @throws FleetError as {@link find}.
   */
  async findOf(user: string): Promise<FoundServer> {
    const id = serverIdOf(user);
    const { own, store } = this.#context;
    if (own.name === null) {
      const server = (await store.registry.read()).servers[id];
      if (server === undefined) throw serverNotFound(`server of user ${quote(user)}`);
      return { host: own, server };
    }
    const having = (await this.#registries()).flatMap(({ name, registry }) => {
      const server = registry.servers[id];
      return server === undefined ? [] : [{ name, server }];
    });
    const [first] = having;
    if (first === undefined) throw serverNotFound(`server of user ${quote(user)}`);
    const placed = await store.placements.read(user);
    const wanted = having.find(({ name }) => name === placed?.host) ?? (having.length === 1 ? first : undefined);
    if (wanted === undefined) {
      throw serverNotFound(
        `server ${quote(id)}`,
        having.map(({ name }) => referenceOf({ id, hostName: name })),
      );
    }
    return { host: await this.#named(wanted.name), server: wanted.server };
  }

  /** The other live hosts that have the user's own server. */
  async othersOf(user: string): Promise<Host[]> {
    const id = serverIdOf(user);
    const hosts = await this.#others();
    const registries = await this.#registries();
    return hosts.there
      .filter(({ name }) => registries.find((each) => each.name === name)?.registry.servers[id] !== undefined)
      .map((host) => new RemoteHost(host, this.#context));
  }

  /**
   * Asks all live hosts at the same time. If this host fails, the whole call fails. If another host does not
   * answer, the result leaves it out, with a warning.
   */
  async everywhere<T>(ask: (host: Host) => Promise<T>): Promise<Gathered<T>> {
    const { own, warn } = this.#context;
    const { there, gone } = await this.#others();
    const hosts = [own, ...there.map((host) => new RemoteHost(host, this.#context))];
    const missing: Missing[] = gone.map(({ name }) => ({ host: name, isGone: true, error: hostAway(name) }));
    const answers = await Promise.all(
      hosts.map(async (host) => {
        try {
          return [{ host, answer: await ask(host) }];
        } catch (error) {
          if (host === own || host.name === null || !isFleetError(error)) throw error;
          missing.push({ host: host.name, isGone: false, error });
          return [];
        }
      }),
    );
    for (const { host, isGone, error } of missing) {
      warn(isGone ? `Host ${host} cannot be reached.` : `Host ${host} did not answer: ${error.message}`);
    }
    return { answers: answers.flat(), missing };
  }

  /**
   * Groups servers by host, and does the work on all hosts at the same time.
   *
   * @throws the first failure, after all hosts have finished.
   */
  async onEach<T>(found: readonly FoundServer[], work: (host: Host, ids: string[]) => Promise<T>): Promise<T[]> {
    return await allOf(groupByHost(found).map(async ({ host, ids }) => await work(host, ids)));
  }

  /**
   * The registries of all hosts, including gone ones, with their names. The name is null if the fleet is on one host.
   */
  async #registries(): Promise<{ name: string | null; registry: Registry }[]> {
    const { store, own } = this.#context;
    const [here, { there, gone }] = await Promise.all([store.registry.read(), this.#others()]);
    const others = [...there, ...gone].map(async ({ name }) => ({ name, registry: await this.registryOf(name) }));
    return [{ name: own.name, registry: here }, ...(await Promise.all(others))];
  }

  /** The registry that another host recorded last. */
  async registryOf(name: string): Promise<Registry> {
    return (await this.#context.store.hosts?.registryOf(name)) ?? { servers: {} };
  }

  async #others(): Promise<{ there: HostRecord[]; gone: HostRecord[] }> {
    const { directory, own } = this.#context;
    const others = (await directory.list()).filter(({ name }) => name !== own.name);
    const isThere = ({ gone, door }: HostRecord) => !gone && door !== null;
    return { there: others.filter(isThere), gone: others.filter((host) => !isThere(host)) };
  }

  async #named(name: string | null): Promise<Host> {
    const { own } = this.#context;
    const host = name === null ? own : await this.thereUnder(name);
    if (host === null) throw hostAway(name ?? "");
    return host;
  }

  /** The host with this name; null when it is gone. */
  async thereUnder(name: string): Promise<Host | null> {
    const { directory, own } = this.#context;
    if (name === own.name) return own;
    const host = (await directory.list()).find((each) => each.name === name && !each.gone);
    return host === undefined ? null : new RemoteHost(host, this.#context);
  }
}

function isOfUser(server: ServerRecord, user: string): boolean {
  return server.user !== null && server.user === user.normalize("NFC");
}

export function groupByHost(found: readonly FoundServer[]): { host: Host; ids: string[] }[] {
  const groups = new Map<string | null, { host: Host; ids: string[] }>();
  for (const { host, server } of found) {
    const group = groups.get(host.name) ?? { host, ids: [] };
    groups.set(host.name, group);
    if (!group.ids.includes(server.id)) group.ids.push(server.id);
  }
  return [...groups.values()];
}

/**
 * The results of all promises.
 *
 * @throws the first failure, after all have settled.
 */
export async function allOf<T>(works: readonly Promise<T>[]): Promise<T[]> {
  const results = await Promise.allSettled(works);
  const failed = results.find((result) => result.status === "rejected");
  if (failed !== undefined) throw failed.reason;
  return results.flatMap((result) => (result.status === "fulfilled" ? [result.value] : []));
}
