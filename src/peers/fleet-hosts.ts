import { FleetError, isFleetError, quote } from "../errors.js";
import type { Whereabouts } from "../hosts/directory.js";
import { hostAway } from "../hosts/problems.js";
import { referenceOf, serverIdOf } from "../pool/server.js";
import type { HostRecord, Registry, ServerRecord } from "../store/store.js";
import type { HostActions } from "./host-actions.js";
import { OtherHost, type OtherHostContext } from "./other-host.js";
import type { OwnHost } from "./own-host.js";

export interface FleetHostsContext extends OtherHostContext {
  own: OwnHost;
  /** Told of hosts that do not answer where others do. */
  warn: (message: string) => void;
}

/** A recorded server, and the host that has it. */
export interface FoundServer {
  host: HostActions;
  server: ServerRecord;
}

/** The host that could not be asked, and why. */
export interface Missing {
  host: string;
  /** It is not there, rather than silent. */
  isGone: boolean;
  error: FleetError;
}

export interface Gathered<T> {
  /** What each host that answered said. */
  answers: { host: HostActions; answer: T }[];
  /** Those that did not, or are gone. */
  missing: Missing[];
}

/** The hosts of the fleet, this one among them, and which of them to ask for what. */
export class FleetHosts {
  readonly #context: FleetHostsContext;

  constructor(context: FleetHostsContext) {
    this.#context = context;
  }

  get own(): OwnHost {
    return this.#context.own;
  }

  /** The names of all hosts that were seen, with this one; none where the fleet is on one host. */
  async names(): Promise<string[]> {
    const { own, directory } = this.#context;
    if (own.name === null) return [];
    return [...new Set([own.name, ...(await directory.list()).map(({ name }) => name)])].sort();
  }

  /** The host that something was found to be on. */
  at(where: Whereabouts): HostActions {
    return where.here ? this.#context.own : new OtherHost(where.host, this.#context);
  }

  /** Where a user is placed, or is now. @throws FleetError `FLEET_HOST_AWAY`. */
  async ofUser(user: string): Promise<HostActions> {
    return this.at(await this.#context.directory.place(user));
  }

  /**
   * The server with this id, or else the server of the user with this id, or else the one whose id begins so, if only one
   * does. A user may have one on several hosts, all with the same id: `ID@HOST` says which.
   *
   * @throws FleetError `FLEET_SERVER_NOT_FOUND`, also for what could be several; `FLEET_HOST_AWAY` when its host is gone.
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
      // The "@" may be the user's own.
      all.filter(({ server }) => isOfUser(server, reference)),
      there.filter(({ server }) => isOfUser(server, id)),
      there.filter(({ server }) => server.id.startsWith(id)),
    ];
    const candidates = readings.find((reading) => reading.length > 0) ?? [];
    const [found] = candidates;
    if (id === "" || found === undefined || candidates.length > 1) {
      throw notFound(
        reference,
        id === "" ? [] : candidates.map(({ name, server }) => referenceOf({ id: server.id, hostName: name })),
      );
    }
    return { host: await this.#named(found.name), server: found.server };
  }

  /** The recorded server of a user: where the user is placed, if it is there. @throws FleetError as {@link find}. */
  async findOf(user: string): Promise<FoundServer> {
    const id = serverIdOf(user);
    const { own, store } = this.#context;
    if (own.name === null) {
      const server = (await store.readRegistry()).servers[id];
      if (server === undefined) throw noServerOf(user);
      return { host: own, server };
    }
    const having = (await this.#registries()).flatMap(({ name, registry }) => {
      const server = registry.servers[id];
      return server === undefined ? [] : [{ name, server }];
    });
    const [first] = having;
    if (first === undefined) throw noServerOf(user);
    const placed = await store.readPlacement(user);
    const wanted = having.find(({ name }) => name === placed?.host) ?? (having.length === 1 ? first : undefined);
    if (wanted === undefined) {
      throw notFound(
        id,
        having.map(({ name }) => referenceOf({ id, hostName: name })),
      );
    }
    return { host: await this.#named(wanted.name), server: wanted.server };
  }

  /** The hosts other than this one on which a user has a server of the user's own, and that are there. */
  async othersOf(user: string): Promise<HostActions[]> {
    const id = serverIdOf(user);
    const hosts = await this.#others();
    const registries = await this.#registries();
    return hosts.there
      .filter(({ name }) => registries.find((each) => each.name === name)?.registry.servers[id] !== undefined)
      .map((host) => new OtherHost(host, this.#context));
  }

  /**
   * Asks every host that is there, side by side. What this host fails with is the failure of the whole; another one that does
   * not answer is told of, and left out.
   */
  async everywhere<T>(ask: (host: HostActions) => Promise<T>): Promise<Gathered<T>> {
    const { own, warn } = this.#context;
    const { there, gone } = await this.#others();
    const hosts = [own, ...there.map((host) => new OtherHost(host, this.#context))];
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
      warn(isGone ? `Host ${host} is away.` : `Host ${host} did not answer: ${error.message}`);
    }
    return { answers: answers.flat(), missing };
  }

  /** Groups what is on several hosts, and does it there, side by side. The first failure is told when all are done. */
  async onEach<T>(found: readonly FoundServer[], work: (host: HostActions, ids: string[]) => Promise<T>): Promise<T[]> {
    return await allOf(groupByHost(found).map(async ({ host, ids }) => await work(host, ids)));
  }

  /** The registries of all hosts, gone ones included, by name; null: the fleet is on one host. */
  async #registries(): Promise<{ name: string | null; registry: Registry }[]> {
    const { store, own } = this.#context;
    const [here, { there, gone }] = await Promise.all([store.readRegistry(), this.#others()]);
    const others = [...there, ...gone].map(async ({ name }) => ({ name, registry: await this.registryOf(name) }));
    return [{ name: own.name, registry: here }, ...(await Promise.all(others))];
  }

  /** What another host recorded last. */
  async registryOf(name: string): Promise<Registry> {
    return (await this.#context.store.hosts?.registryOf(name)) ?? { servers: {} };
  }

  async #others(): Promise<{ there: HostRecord[]; gone: HostRecord[] }> {
    const { directory, own } = this.#context;
    const others = (await directory.list()).filter(({ name }) => name !== own.name);
    const isThere = ({ gone, door }: HostRecord) => !gone && door !== null;
    return { there: others.filter(isThere), gone: others.filter((host) => !isThere(host)) };
  }

  async #named(name: string | null): Promise<HostActions> {
    const { own } = this.#context;
    const host = name === null ? own : await this.thereUnder(name);
    if (host === null) throw hostAway(name ?? "");
    return host;
  }

  /** The host of this name; null when it is gone. */
  async thereUnder(name: string): Promise<HostActions | null> {
    const { directory, own } = this.#context;
    if (name === own.name) return own;
    const host = (await directory.list()).find((each) => each.name === name && !each.gone);
    return host === undefined ? null : new OtherHost(host, this.#context);
  }
}

function isOfUser(server: ServerRecord, user: string): boolean {
  return server.user !== null && server.user === user.normalize("NFC");
}

export function groupByHost(found: readonly FoundServer[]): { host: HostActions; ids: string[] }[] {
  const groups = new Map<string | null, { host: HostActions; ids: string[] }>();
  for (const { host, server } of found) {
    const group = groups.get(host.name) ?? { host, ids: [] };
    groups.set(host.name, group);
    if (!group.ids.includes(server.id)) group.ids.push(server.id);
  }
  return [...groups.values()];
}

/** What all give. The first failure is told when all are done. */
export async function allOf<T>(works: readonly Promise<T>[]): Promise<T[]> {
  const results = await Promise.allSettled(works);
  const failed = results.find((result) => result.status === "rejected");
  if (failed !== undefined) throw failed.reason;
  return results.flatMap((result) => (result.status === "fulfilled" ? [result.value] : []));
}

function notFound(reference: string, candidates: string[]): FleetError {
  const several = candidates.length > 1 ? `: it could be ${candidates.join(", ")}` : "";
  return new FleetError("FLEET_SERVER_NOT_FOUND", `There is no server ${quote(reference)}${several}.`, {
    suggestions: ["copilotfleet ps", "copilotfleet spawn --user USER"],
  });
}

function noServerOf(user: string): FleetError {
  return new FleetError("FLEET_SERVER_NOT_FOUND", `There is no server of user ${quote(user)}.`, {
    suggestions: ["copilotfleet ps", "copilotfleet spawn --user USER"],
  });
}
