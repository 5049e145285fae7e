import { FleetError, isFleetError, option, quote, type Suggestion } from "../base/errors.js";
import type { OnProgress } from "../base/progress.js";
import { mayUse, type SessionRecord } from "../base/session.js";
import type { Suspension } from "../base/usage.js";
import { nearestOf } from "../base/values/names.js";
import { compareText } from "../base/values/text.js";
import type { Config } from "../config/schema.js";
import { listTokens } from "../identity/tokens.js";
import { ownHostName } from "../runtime/files/shared-storage.js";
import { sessionStranded } from "../servers/directory.js";
import { type ServerView, viewServerOf } from "../servers/server.js";
import type { Stopped } from "../servers/stop.js";
import type { GcOptions, GcResult } from "../sessions/gc/collect.js";
import type { EvictionResult, KeptReason } from "../sessions/memory/eviction.js";
import { warnOfUnreadable } from "../sessions/problems.js";
import { type SessionFinder, type SessionView, viewRecord } from "../sessions/view.js";
import type { LinkContext } from "./calls/control-link.js";
import { type FleetHosts, onEachHost, type Placed } from "./fleet-hosts.js";
import type { ServerFilter, SessionFilter, SpawnManyRequest } from "./options.js";

/** The servers of all hosts. For a host that does not answer, returns the servers that it recorded last. */
export async function gatherServers(hosts: FleetHosts): Promise<ServerView[]> {
  const { answers, missing } = await hosts.everywhere(async (host) => await host.servers({}));
  const recorded = missing.map(async ({ host }) =>
    Object.values((await hosts.registryOf(host)).servers).map((server) => viewServerOf(host, server)),
  );
  return [...answers.flatMap(({ answer }) => answer), ...(await Promise.all(recorded)).flat()];
}

export interface SessionPlaces extends LinkContext {
  hosts: FleetHosts;
  /** Reports a problem that did not stop the work. */
  warn: (message: string) => void;
}

export interface GatherSessionsContext extends SessionPlaces {
  /** The configured TTL of sessions, in milliseconds. Null: for ever. */
  ttlMs: number | null;
}

/** The sessions of all hosts, most recently used first. For a recorded session that no host lists, shows its record. */
export async function gatherSessions(
  { store, directory, hosts, ttlMs, warn }: GatherSessionsContext,
  user: string | undefined,
): Promise<SessionView[]> {
  const { answers } = await hosts.everywhere(async (host) => await host.sessions({ user }));
  const views = answers.flatMap(({ answer }) => answer);
  if (hosts.own.name === null) return views;
  const all = await store.sessions.list(warnOfUnreadable(warn));
  const records = all.filter((record) => user === undefined || mayUse(record, user));
  const hostOf = new Map(records.map(({ id, host }) => [id, host]));
  // If a session moved while the hosts answered, two of them list it. Keep the view of the host that the record names.
  const shown = views.filter(({ id, host }) => !hostOf.has(id) || hostOf.get(id) === host);
  const ids = new Set(shown.map(({ id }) => id));
  const rest = records.filter(({ id }) => !ids.has(id));
  const unseen = await Promise.all(rest.map(async (record) => await viewUnseen({ store, directory, ttlMs }, record)));
  return [...shown, ...unseen].sort((a, b) => compareText(b.lastUsedAt, a.lastUsedAt) || compareText(a.id, b.id));
}

/** Describes a session by its record, because no host has reported the session. */
async function viewUnseen(
  { store, directory, ttlMs }: Pick<GatherSessionsContext, "store" | "directory" | "ttlMs">,
  record: SessionRecord,
): Promise<SessionView> {
  const lease = await store.leases.read(record.id);
  return viewRecord(record, { lease, ttlMs, stranded: await directory.isStranded(record) });
}

export async function gatherGarbage(
  hosts: FleetHosts,
  { signal, onProgress, ...request }: Omit<GcOptions, "ttlMs"> & { ttlMs: number | null },
): Promise<GcResult> {
  const { answers } = await hosts.everywhere(async (host) => await host.gc(request, { signal, onProgress }));
  const results = answers.map(({ answer }) => answer);
  // Each host reads all records, so all hosts report the same unreadable ones.
  const unreadable = new Map(results.flatMap((result) => result.unreadable).map((record) => [record.id, record]));
  return {
    deleted: results.flatMap(({ deleted }) => deleted),
    skipped: results.flatMap(({ skipped }) => skipped),
    freedBytes: results.reduce((sum, { freedBytes }) => sum + freedBytes, 0),
    dryRun: request.dryRun,
    servers: results.flatMap(({ servers }) => servers),
    remains: results.flatMap(({ remains }) => remains),
    unreadable: [...unreadable.values()],
  };
}

/**
 * Unloads these sessions on the hosts that have them in memory.
 *
 * @throws FleetError when a host does not answer and may have one of the sessions in memory. Other hosts may already
 * have unloaded their sessions.
 */
export async function evictEverywhere(
  context: SessionPlaces,
  ids: readonly string[],
  onProgress?: OnProgress,
): Promise<EvictionResult> {
  const { store, directory, hosts } = context;
  const { answers, missing } = await hosts.everywhere(async (host) => await host.evict({ ids }, { onProgress }));
  const evicted = answers.flatMap(({ answer }) => answer.evicted);
  const kept = answers.flatMap(({ answer }) => answer.skipped).filter(({ reason }) => reason !== "not active");
  const known = new Set([...evicted, ...kept.map(({ id }) => id)]);
  const absent = [...new Set(ids)].filter((id) => !known.has(id));
  for (const id of missing.length === 0 ? [] : absent) {
    const record = await store.sessions.read(id);
    // With shared storage, ignore hosts that are gone, because any host may take over their sessions.
    const asked = missing.filter(({ isGone }) => !(isGone && directory.isShared));
    const holder = asked.find(({ host, isGone }) => (record === null ? !isGone : host === record.host));
    if (holder === undefined) continue;
    throw holder.isGone && record !== null ? sessionStranded(record) : holder.error;
  }
  const unknown = new Set(await unknownOf(context, absent));
  const reasonOf = (id: string): KeptReason => (unknown.has(id) ? "not found" : "not active");
  return { evicted, skipped: [...kept, ...absent.map((id) => ({ id, reason: reasonOf(id) }))] };
}

/** @returns the ids that do not belong to any session, of any user or on any host */
export async function unknownOf(context: SessionPlaces, ids: readonly string[]): Promise<string[]> {
  const { store } = context;
  const records = await Promise.all(ids.map(async (id) => await store.sessions.read(id)));
  const unrecorded = ids.filter((_, at) => records[at] === null);
  if (unrecorded.length === 0) return [];
  // A session without a record may still exist, because clients that connect to a server directly create such sessions.
  const { own } = context.hosts;
  const known = new Set(
    own.name === null
      ? await own.sessionIds((id) => unrecorded.includes(id), undefined)
      : (await gatherSessions({ ...context, ttlMs: 0 }, undefined)).map(({ id }) => id),
  );
  return unrecorded.filter((id) => !known.has(id));
}

/** Unloads the least recently used sessions of all hosts until at most `max` are in memory. */
export async function evictDownTo(hosts: FleetHosts, max: number, onProgress?: OnProgress): Promise<EvictionResult> {
  const { answers } = await hosts.everywhere(async (host) => await host.loaded({}));
  const loaded = answers
    .flatMap(({ host, answer }) => answer.map(({ id, usedMs }) => ({ host, id, usedMs })))
    .sort((a, b) => a.usedMs - b.usedMs);
  const result: EvictionResult = { evicted: [], skipped: [] };
  for (const { host, id } of loaded) {
    if (loaded.length - result.evicted.length <= max) break;
    onProgress?.({ done: result.evicted.length, total: loaded.length - max, turns: [] });
    const { evicted, skipped } = await host.evict({ ids: [id] });
    result.evicted.push(...evicted);
    result.skipped.push(...skipped);
  }
  return result;
}

/** Starts the server of each user on the user's host. If one server fails to start, the others still start. */
export async function spawnEverywhere(
  hosts: FleetHosts,
  users: readonly string[],
  { onProgress, ...request }: SpawnManyRequest,
): Promise<ServerView[]> {
  const placed: Placed[] = [];
  for (const user of users) placed.push({ host: await hosts.ofUser(user), id: user });
  const started = await onEachHost(
    placed,
    async (host, ids, own) => await host.spawnMany({ users: ids, request }, { onProgress: own }),
    onProgress,
  );
  const servers = new Map(started.flat().map((server) => [server.user, server]));
  return users.flatMap((user) => servers.get(user) ?? []);
}

/** The view of one session, from the session's host. If the host does not answer, the view comes from the record. */
export async function viewSessionOf(
  context: GatherSessionsContext & { finder: SessionFinder },
  id: string,
  user: string,
): Promise<SessionView> {
  const record = await context.finder.find(id, user);
  try {
    const host = context.hosts.at(await context.directory.whereIs(record));
    return await host.sessionOf({ id, user });
  } catch (error) {
    if (!isFleetError(error, "FLEET_HOST_AWAY")) throw error;
    return await viewUnseen(context, record);
  }
}

interface FilterContext {
  hosts: FleetHosts;
  config: Config;
  stateRoot: string;
}

/** Returns the servers that match. @throws FleetError `FLEET_USAGE_INVALID` when the fleet does not have `host`. */
export async function filterServers(
  context: FilterContext,
  servers: readonly ServerView[],
  { user, state, host }: ServerFilter,
): Promise<ServerView[]> {
  const isOn = await placeFilter(context, host);
  return servers.filter(
    (server) => isWanted(user, server.user) && isWanted(state, server.state) && isOn(server.hostName),
  );
}

/**
 * Returns the sessions that match. The caller has already filtered them by user.
 *
 * @throws FleetError as {@link filterServers}.
 */
export async function filterSessions(
  context: FilterContext,
  sessions: readonly SessionView[],
  { state, purpose, host, model }: Omit<SessionFilter, "user">,
): Promise<SessionView[]> {
  const isOn = await placeFilter(context, host);
  return sessions.filter(
    (session) =>
      isWanted(state, session.state) &&
      isWanted(purpose, session.purpose) &&
      isWanted(model, session.model ?? context.config.session.model) &&
      isOn(session.host),
  );
}

function isWanted(wanted: string | undefined, value: string | null): boolean {
  return wanted === undefined || wanted === value;
}

/** Returns a function that checks the host name of a server or a session. In a fleet on one host, that name is null. */
async function placeFilter({ hosts, config, stateRoot }: FilterContext, wanted: string | undefined) {
  if (wanted === undefined) return () => true;
  const own = hosts.own.name ?? ownHostName(config, stateRoot);
  const names = hosts.own.name === null ? [own] : await hosts.names();
  if (names.includes(wanted)) return (host: string | null) => (host ?? own) === wanted;
  const message = `${option("host")} ${quote(wanted)} is not a host of this fleet. Use ${names.join(" or ")}.`;
  throw new FleetError("FLEET_USAGE_INVALID", message);
}

export interface UserEntry {
  user: string;
  /** How many recorded sessions the user owns. */
  sessions: number;
  /** How many servers belong to the user, running or not, on all hosts. */
  servers: number;
  /** How many tokens of the user were issued and not revoked. */
  tokens: number;
  /** Null unless the user is suspended. */
  suspended: Suspension | null;
}

/** A suspension that has begun. */
export interface SuspendedUser extends Suspension {
  user: string;
  /** Whether the user has a session, a server or a token. */
  known: boolean;
  /** The servers of the user that were stopped. */
  stopped: Stopped[];
}

/** Returns the users who have a session, a server or a token, and those who are suspended, sorted by name. */
export async function listUsers({ store, hosts, warn }: SessionPlaces): Promise<UserEntry[]> {
  const [records, servers, tokens, limits] = await Promise.all([
    store.sessions.list(warnOfUnreadable(warn)),
    hosts.recorded(),
    listTokens(store),
    store.limits.list(),
  ]);
  const users = new Map<string, UserEntry>();
  const entryOf = (user: string) => {
    const entry = users.get(user) ?? { user, sessions: 0, servers: 0, tokens: 0, suspended: null };
    users.set(user, entry);
    return entry;
  };
  const add = (user: string | null, what: "sessions" | "servers" | "tokens") => {
    if (user !== null) entryOf(user)[what]++;
  };
  for (const { owner } of records) add(owner, "sessions");
  for (const { server } of servers) add(server.user, "servers");
  for (const { user } of tokens) add(user, "tokens");
  for (const { user, suspended } of limits) if (suspended !== undefined) entryOf(user).suspended = suspended;
  return [...users.values()].sort((a, b) => compareText(a.user, b.user));
}

export async function unknownUser(places: SessionPlaces, user: string): Promise<FleetError> {
  const near = nearestOf(user, await listUsers(places), (each) => each.user);
  return new FleetError("FLEET_NAME_NOT_FOUND", `The fleet knows nothing about user ${quote(user)}.`, {
    suggestions: [...near.map((each): Suggestion => `Did you mean ${each.user}?`), "copilotfleet user list"],
  });
}
