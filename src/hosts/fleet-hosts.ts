import { deadline } from "../base/clock.js";
import { FleetError, isFleetError, quote } from "../base/errors.js";
import type { HostRecord } from "../base/host.js";
import { isSessionId, mayMean, serverIdOf } from "../base/ids.js";
import { addUp, counted, type OnProgress } from "../base/progress.js";
import type { Registry, ServerRecord } from "../base/server.js";
import type { TokenEnd } from "../base/token.js";
import type { LogPosition } from "../serve/logs.js";
import { hostAway, type Whereabouts } from "../servers/directory.js";
import { serverNotFound, serverUnclear } from "../servers/pool.js";
import { referenceOf } from "../servers/server.js";
import type { Calls } from "./calls/rpc-table.js";
import type { LocalHost } from "./local-host.js";
import { RemoteHost, type RemoteHostContext } from "./remote-host.js";

/** How long `serve` waits at its start for the answers to `tokenEnds` from the other hosts, in milliseconds. */
const LEARN_MS = 5_000;

interface FleetHostsContext extends RemoteHostContext {
  own: LocalHost;
  /** Called with a message for each host that does not answer. */
  warn: (message: string) => void;
}

interface FoundServer {
  host: Host;
  server: ServerRecord;
}

export interface Missing {
  host: string;
  /** True if the host counts as gone, false if it counts as alive and did not answer. */
  isGone: boolean;
  error: FleetError;
}

export interface Gathered<T> {
  answers: { host: Host; answer: T }[];
  missing: Missing[];
}

/** The hosts of the fleet, including this one. Finds the host that has a user or a server. */
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

  at(where: Whereabouts): Host {
    return where.here ? this.#context.own : this.#remote(where.host);
  }

  /** The host that a user is placed on. Places the user if necessary. @throws FleetError `FLEET_HOST_AWAY`. */
  async ofUser(user: string): Promise<Host> {
    return this.at(await this.#context.directory.place(user));
  }

  /**
   * Finds the server that `reference` names: by its id, or else by the id of its user, or else by the beginning of its
   * id ({@link mayMean}). If a user has servers with the same id on several hosts, `ID@HOST` names one of them.
   *
   * @throws FleetError `FLEET_NAME_NOT_FOUND` when no server matches, or several do; `FLEET_HOST_AWAY` when the
   * server's host is gone.
   */
  async find(reference: string): Promise<FoundServer> {
    const matching = await this.matching(reference);
    if (matching.length === 0 && isSessionId(reference)) await this.#refuseSession(reference);
    return await this.#reach(onlyServer(matching, reference));
  }

  /** @throws FleetError `FLEET_NAME_NOT_FOUND` when this is the id of a session */
  async #refuseSession(id: string): Promise<void> {
    if ((await this.#context.store.sessions.read(id)) === null) return;
    throw new FleetError("FLEET_NAME_NOT_FOUND", `${quote(id)} is the id of a session, not of a server.`, {
      suggestions: [`copilotfleet describe session/${id} # shows the session and its server`, "copilotfleet ps"],
    });
  }

  /** The servers from which {@link find} chooses, on all hosts, including hosts that are gone. */
  async matching(reference: string): Promise<RecordedServer[]> {
    const at = reference.lastIndexOf("@");
    const [id, host] = at === -1 ? [reference, undefined] : [reference.slice(0, at), reference.slice(at + 1)];
    const all = await this.recorded();
    const there = all.filter(({ hostName }) => host === undefined || hostName === host);
    const readings = [
      there.filter(({ server }) => server.id === id),
      // In this reading, the "@" is part of the user's id.
      all.filter(({ server }) => isOfUser(server, reference)),
      there.filter(({ server }) => isOfUser(server, id)),
      there.filter(({ server }) => mayMean(id, server.id)),
    ];
    return id === "" ? [] : (readings.find((reading) => reading.length > 0) ?? []);
  }

  /**
   * Finds the recorded server of a user. If several hosts have a server of the user, prefers the host on which the user
   * is placed.
   *
   * @throws FleetError as {@link find}.
   */
  async findOf(user: string): Promise<FoundServer> {
    const id = serverIdOf(user);
    const having = (await this.recorded()).filter(({ server }) => server.id === id);
    if (having.length === 0) throw serverNotFound(`server of user ${quote(user)}`, "copilotfleet spawn --user USER");
    const placed = having.length === 1 ? null : await this.#context.store.placements.read(user);
    const there = having.filter(({ hostName }) => hostName === placed?.host);
    return await this.#reach(onlyServer(there.length === 1 ? there : having, id));
  }

  async #reach({ server, hostName }: RecordedServer): Promise<FoundServer> {
    const host = await this.hostOf({ hostName });
    if (host === null) throw hostAway(hostName ?? "");
    return { host, server };
  }

  /** The host of a recorded server; null if the host is gone. */
  async hostOf({ hostName }: Pick<RecordedServer, "hostName">): Promise<Host | null> {
    return hostName === null ? this.#context.own : await this.thereUnder(hostName);
  }

  /** The other live hosts that have the user's own server. */
  async othersOf(user: string): Promise<Host[]> {
    const id = serverIdOf(user);
    const { there } = await this.#others();
    const registries = await Promise.all(there.map(async ({ name }) => await this.registryOf(name)));
    return there.filter((_, at) => registries[at]?.servers[id] !== undefined).map((host) => this.#remote(host));
  }

  /** The other live hosts. */
  async others(): Promise<Host[]> {
    return (await this.#others()).there.map((host) => this.#remote(host));
  }

  /** Asks all live hosts at once. If another host is gone or does not answer, warns and lists it as missing. */
  async everywhere<T>(ask: (host: Host) => Promise<T>): Promise<Gathered<T>> {
    const { own, warn } = this.#context;
    const { there, gone } = await this.#others();
    const hosts = [own, ...there.map((host) => this.#remote(host))];
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
   * Asks the other live hosts which tokens were revoked or got an earlier expiry, and records that on this host,
   * because this host may have been away at that time. Resolves with the failure of each host that does not answer.
   */
  async learnTokenEnds(signal: AbortSignal): Promise<{ host: string; error: unknown }[]> {
    const { there } = await this.#others();
    using limit = deadline(LEARN_MS, signal);
    const failures = there.map(async (host) => {
      try {
        const ends = await this.#remote(host).tokenEnds({}, { signal: limit.signal });
        await this.own.endTokens({ ends: [...ends] });
        return [];
      } catch (error) {
        signal.throwIfAborted();
        return [{ host: host.name, error }];
      }
    });
    return (await Promise.all(failures)).flat();
  }

  /**
   * Makes each host remember that tokens were revoked or got an earlier expiry. Warns about hosts that do not answer.
   */
  async tellTokenEnds(ends: TokenEnd[]): Promise<void> {
    const { missing } = await this.everywhere(async (host) => await host.endTokens({ ends }));
    if (missing.length === 0) return;
    const names = missing.map(({ host }) => quote(host)).join(", ");
    const again = "copilotfleet token revoke ID";
    this.#context.warn(
      `Not told of the end of the tokens: ${names}. They learn it when serve starts there. If serve already runs there, run later: ${again}`,
    );
  }

  /** The servers in the registries of all hosts, including hosts that are gone. */
  async recorded(): Promise<RecordedServer[]> {
    const { store, own } = this.#context;
    const [here, { there, gone }] = await Promise.all([store.registry.read(), this.#others()]);
    const others = [...there, ...gone].map(async ({ name }) => serversOf(name, await this.registryOf(name)));
    return [...serversOf(own.name, here), ...(await Promise.all(others)).flat()];
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

  /** @returns the host with this name, or null if that host is gone */
  async thereUnder(name: string): Promise<Host | null> {
    const { directory, own } = this.#context;
    if (name === own.name) return own;
    const host = (await directory.list()).find((each) => each.name === name && !each.gone);
    return host === undefined ? null : this.#remote(host);
  }

  #remote(host: HostRecord): RemoteHost {
    return new RemoteHost(host, this.#context);
  }
}

export interface RecordedServer {
  /** The name of the server's host. Null if the fleet is on one host. */
  hostName: string | null;
  server: ServerRecord;
}

/** Returns the only match. @throws FleetError `FLEET_NAME_NOT_FOUND` when there is none, or more than one. */
export function onlyServer(matching: readonly RecordedServer[], text: string): RecordedServer {
  const [found] = matching;
  if (found === undefined) throw serverNotFound(`server ${quote(text)}`);
  if (matching.length === 1) return found;
  const ids = matching.map(({ server: { id }, hostName }) => referenceOf({ id, hostName }));
  throw serverUnclear(text, ids);
}

function serversOf(hostName: string | null, { servers }: Registry): RecordedServer[] {
  return Object.values(servers).map((server) => ({ hostName, server }));
}

function isOfUser(server: ServerRecord, user: string): boolean {
  return server.user !== null && server.user === user.normalize("NFC");
}

/** Something that belongs to one host, such as the id of a server. */
export interface Placed {
  host: Host;
  id: string;
}

export function groupByHost(placed: readonly Placed[]): { host: Host; ids: string[] }[] {
  const groups = new Map<string | null, { host: Host; ids: Set<string> }>();
  for (const { host, id } of placed) {
    const group = groups.get(host.name) ?? { host, ids: new Set() };
    groups.set(host.name, group);
    group.ids.add(id);
  }
  return [...groups.values()].map(({ host, ids }) => ({ host, ids: [...ids] }));
}

/**
 * Calls `work` once for each host, for all hosts at the same time. Adds up the progress of all calls.
 *
 * @throws the first failure, after all calls have ended
 */
export async function onEachHost<T>(
  placed: readonly Placed[],
  work: (host: Host, ids: string[], onProgress: OnProgress) => Promise<T>,
  onProgress?: OnProgress,
): Promise<T[]> {
  const groups = groupByHost(placed);
  const progressOf = addUp(
    onProgress,
    groups.reduce((sum, { ids }) => sum + ids.length, 0),
  );
  const results = await Promise.allSettled(
    groups.map(async ({ host, ids }) => {
      const progress = progressOf(host.name ?? "");
      return await counted(progress, ids.length, async (own) => await work(host, ids, own));
    }),
  );
  const failed = results.find((result) => result.status === "rejected");
  if (failed !== undefined) throw failed.reason;
  return results.flatMap((result) => (result.status === "fulfilled" ? [result.value] : []));
}

/**
 * One host of the fleet, with the operations on its own servers and sessions. `LocalHost` performs them, and
 * `RemoteHost` asks another host to perform them. `Calls` lists the operations: one for each row of the table in
 * `rpc-table.ts`. Their parameters contain full server ids.
 */
export interface Host extends Calls {
  /** Null if the fleet is on one host. */
  readonly name: string | null;
  /** Yields the bytes that are added to the log of a server, until the signal aborts. */
  followLog(id: string, at: LogPosition, signal: AbortSignal): AsyncIterable<Buffer>;
}
