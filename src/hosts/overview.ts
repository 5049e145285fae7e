import { isFleetError, quote } from "../base/errors.js";
import type { HostRecord, Placement } from "../base/host.js";
import type { RecordedSource, Registry, ServerRecord, SupervisorRecord } from "../base/server.js";
import type { SessionRecord } from "../base/session.js";
import type { QuotaPart, Suspension } from "../base/usage.js";
import { compareText } from "../base/values/text.js";
import type { Config } from "../config/schema.js";
import { listTokens, type TokenView } from "../identity/tokens.js";
import { ownHostName } from "../runtime/files/shared-storage.js";
import { sessionFolderPath } from "../runtime/history/session-state.js";
import { liveSupervisor, type PoolState, poolState } from "../servers/admission.js";
import { type ServerView, viewServerOf } from "../servers/server.js";
import type { ServerActivity } from "../sessions/memory/eviction.js";
import { warnOfUnreadable } from "../sessions/problems.js";
import type { SessionFinder, SessionView } from "../sessions/view.js";
import type { Gathered, Host, RecordedServer } from "./fleet-hosts.js";
import {
  type GatherSessionsContext,
  gatherServers,
  gatherSessions,
  type SessionPlaces,
  viewSessionOf,
} from "./gather.js";

export interface HostView {
  name: string;
  /** `unattended`: no `serve` runs on the host. `gone`: its heartbeats have ended. */
  state: "serving" | "draining" | "unattended" | "gone";
  /** Null if the fleet is on one host. */
  term: number | null;
  /** The time since the host's last heartbeat, in milliseconds. Null in a fleet on one host, or if the host is gone. */
  heartbeatAgeMs: number | null;
  /** `host:port` of its front door. */
  door: string | null;
  startedAt: string | null;
  /** How many of the host's servers run. */
  servers: number;
  /** How many sessions are in the memory of these servers. */
  sessions: number;
  memoryBytes: number;
}

/**
 * A server with its activity at this moment. `turns` and `latencyMs` are null if the server does not run or does not
 * answer.
 */
export interface BusyServer extends ServerView {
  /** The number of its sessions that are in a turn. */
  turns: number | null;
  /** The time from a ping to its answer, in milliseconds. */
  latencyMs: number | null;
}

/** One user, with everything that belongs to the user on all hosts. */
export interface UserView {
  user: string;
  /**
   * The state of the user's own server; null if the user has none. If the user has servers on several hosts, prefers
   * the state of one that runs.
   */
  state: ServerView["state"] | null;
  sessions: number;
  /** How many of the sessions are in a server's memory. */
  active: number;
  /** How many of the sessions are in a turn. */
  turns: number;
  /** Private memory of the user's own servers, in bytes. */
  memoryBytes: number;
  /** When one of the sessions was last used; null if the user has none. */
  lastUsedAt: string | null;
}

export interface Overview {
  /** The state of this host's pool. */
  pool: PoolState;
  hosts: HostView[];
  servers: BusyServer[];
  /** `active`: in a server's memory; `idle`: all other recorded sessions. */
  sessions: { active: number; idle: number };
  /** Everybody who has a server or a session, ordered by id. */
  users: UserView[];
  /** The ids of the sessions that are in a turn. */
  turns: string[];
}

interface OverviewContext extends SessionPlaces {
  config: Config;
  stateRoot: string;
}

export async function lookAtAll(context: OverviewContext): Promise<Overview> {
  const { store, hosts, warn } = context;
  const registry = await store.registry.read();
  const [entries, views, loaded, asked, records] = await Promise.all([
    hostEntries(context, registry),
    gatherServers(hosts),
    hosts.everywhere(async (host) => await host.loaded({})),
    hosts.everywhere(async (host) => await host.activity({})),
    store.sessions.list(warnOfUnreadable(warn)),
  ]);
  const servers = views.map((server) => withActivity(server, asked.answers));
  const turns = asked.answers.flatMap(({ answer }) => answer.flatMap((each) => each.turns ?? [])).sort(compareText);
  const active = new Set(loaded.answers.flatMap(({ answer }) => answer.map(({ id }) => id)));
  const idle = records.filter(({ id }) => !active.has(id)).length;
  return {
    pool: poolState(registry),
    hosts: entries.map((entry) => ({ ...entry, ...sumOf(servers, entry.name, entries.length === 1) })),
    servers,
    sessions: { active: active.size, idle },
    users: usersOf(servers, records, { active, turns: new Set(turns) }),
    turns,
  };
}

export function withActivity(server: ServerView, answers: Gathered<ServerActivity[]>["answers"]): BusyServer {
  const onHost = answers.find(({ host }) => host.name === server.hostName);
  const { latencyMs = null, turns = null } = onHost?.answer.find(({ id }) => id === server.id) ?? {};
  return { ...server, turns: turns === null ? null : turns.length, latencyMs };
}

function usersOf(
  servers: readonly ServerView[],
  records: readonly SessionRecord[],
  { active, turns }: { active: ReadonlySet<string>; turns: ReadonlySet<string> },
): UserView[] {
  const owned = new Map<string, SessionRecord[]>();
  for (const record of records) {
    const ofOwner = owned.get(record.owner) ?? [];
    ofOwner.push(record);
    owned.set(record.owner, ofOwner);
  }
  const names = new Set([...servers.flatMap(({ user }) => user ?? []), ...owned.keys()]);
  return [...names].sort(compareText).map((user) => {
    const own = servers.filter((server) => server.user === user);
    const sessions = owned.get(user) ?? [];
    return {
      user,
      state: (own.find(({ pid }) => pid !== null) ?? own[0])?.state ?? null,
      sessions: sessions.length,
      active: sessions.filter(({ id }) => active.has(id)).length,
      turns: sessions.filter(({ id }) => turns.has(id)).length,
      memoryBytes: own.reduce((sum, { memoryBytes }) => sum + (memoryBytes ?? 0), 0),
      lastUsedAt:
        sessions
          .map(({ lastUsedAt }) => lastUsedAt)
          .sort()
          .at(-1) ?? null,
    };
  });
}

type Entry = Omit<HostView, "servers" | "sessions" | "memoryBytes">;

async function hostEntries({ directory, config, stateRoot }: OverviewContext, registry: Registry): Promise<Entry[]> {
  const known = (await directory.list()).map((host) => entryOf(host, config.host.ttlMs));
  const own = directory.own ?? ownHostName(config, stateRoot);
  if (known.some(({ name }) => name === own)) return known;
  return [...known, unlisted(own, liveSupervisor(registry))].sort((a, b) => compareText(a.name, b.name));
}

function entryOf({ name, state, term, gone, remainingMs, door, startedAt }: HostRecord, ttlMs: number): Entry {
  const heartbeatAgeMs = gone ? null : Math.max(0, ttlMs - remainingMs);
  return { name, state: gone ? "gone" : state, term, heartbeatAgeMs, door, startedAt };
}

/** The entry of this host if the directory does not list it. */
function unlisted(name: string, supervisor: SupervisorRecord | undefined): Entry {
  const { state = "unattended", door = null, startedAt = null } = supervisor ?? {};
  return { name, state, term: null, heartbeatAgeMs: null, door, startedAt };
}

function sumOf(servers: readonly ServerView[], name: string, isOnly: boolean) {
  const running = servers.filter(({ hostName, pid }) => pid !== null && (hostName ?? (isOnly ? name : null)) === name);
  return {
    servers: running.length,
    sessions: running.reduce((sum, { activeSessions }) => sum + activeSessions, 0),
    memoryBytes: running.reduce((sum, { memoryBytes }) => sum + (memoryBytes ?? 0), 0),
  };
}

/** A server's description contains this many lines from the end of the server's log. */
const LOG_LINES = 10;

/** Everything about one server. It contains no secret, such as the connection token. */
export interface ServerDescription {
  kind: "server";
  server: ServerView;
  record: ServerFacts;
  sessions: SessionView[];
  /** The last lines of the server's log; empty if the server's host does not answer. */
  logLines: string[];
}

/** The parts of a server's record that are not in its view. Times are ISO 8601 in UTC. */
export interface ServerFacts {
  createdAt: string;
  /** Whether the server should run; null until it has run once. */
  desired: "running" | "stopped" | null;
  /** The port that the server listened on last. `restart` uses this port again if it is free. */
  lastPort: number | null;
  /** The id of the last start of the server's process. */
  launchId: string | null;
  runtimePath: string;
  /**
   * The kind of source from which the server gets its GitHub token, if that source was given at the server's start.
   * Null if the source is `auth` of the configuration, or if the server has no token.
   */
  gitHubToken: RecordedSource | null;
  /** Whether a new process is about to replace the server's present process. */
  isBeingReplaced: boolean;
}

/** Everything about one session. */
export interface SessionDescription {
  kind: "session";
  session: SessionView;
  /**
   * The model of the session's next turn: the session's own model, or else `session.model` of the configuration. `echo`
   * if the echo model answers, which ignores both.
   */
  effectiveModel: string | null;
  /** The number of turns that went through the fleet; null if the fleet has no record of the session. */
  turns: number | null;
  /** When gc may delete the session if nobody uses it until then (ISO 8601, UTC); null if the time is not known. */
  expiresAt: string | null;
  /** The path of the session's folder on its host; null if the fleet does not know the session's server. */
  folder: string | null;
  server: ServerView | null;
}

/** Everything about one user. It contains no token. */
export interface UserDescription {
  kind: "user";
  user: string;
  /** The host and the shared server on which the user's sessions are created; null if the user was never placed. */
  placement: Placement | null;
  /** Null unless the user is suspended. */
  suspended: Suspension | null;
  /** The user's own servers. Each host may have one. */
  servers: ServerView[];
  /** The sessions that the user owns or is a member of. */
  sessions: SessionView[];
  tokens: TokenView[];
  /**
   * The quota of the user's Copilot plan, as GitHub reports it. Null if a model provider is configured, if no server of
   * the user runs, if the user has no GitHub token, or if GitHub does not answer.
   */
  quota: QuotaPart[] | null;
}

export type Description = ServerDescription | SessionDescription | UserDescription;

interface DescribeContext extends GatherSessionsContext {
  finder: SessionFinder;
  config: GatherSessionsContext["config"] & { session: { model: string | null }; provider: Config["provider"] };
}

export async function describeServer(context: DescribeContext, found: RecordedServer): Promise<ServerDescription> {
  const { server } = found;
  const { view, host } = await viewRecorded(context, found);
  const [all, log] = await Promise.all([
    gatherSessions(context, undefined),
    host?.logEnd({ id: server.id, lines: LOG_LINES }),
  ]);
  const sessions = all.filter(({ serverId, host: at }) => serverId === server.id && at === found.hostName);
  return {
    kind: "server",
    server: { ...view, sessions: sessions.length },
    record: factsOf(server),
    sessions,
    logLines: log?.lines ?? [],
  };
}

/** The facts from a server's record. */
function factsOf(server: ServerRecord): ServerFacts {
  const { createdAt, desired = null, lastPort, launchId, runtimePath, token, replacement = null } = server;
  const gitHubToken = token && { from: token.from };
  return { createdAt, desired, lastPort, launchId, runtimePath, gitHubToken, isBeingReplaced: replacement !== null };
}

/** Describes the recorded session with this id. Null if no record has this id. */
export async function describeRecorded(context: DescribeContext, id: string): Promise<SessionDescription | null> {
  const record = await context.store.sessions.read(id);
  if (record === null) return null;
  return await describeSession(context, await viewSessionOf(context, id, record.owner), record.turns);
}

/**
 * Describes the sessions with this id that users' clients created without the fleet. To find them, reads the list of
 * all sessions.
 */
export async function describeUnrecorded(context: DescribeContext, id: string): Promise<SessionDescription[]> {
  const sessions = (await gatherSessions(context, undefined)).filter((session) => session.id === id);
  return await Promise.all(sessions.map(async (session) => await describeSession(context, session, null)));
}

async function describeSession(
  context: DescribeContext,
  session: SessionView,
  turns: number | null,
): Promise<SessionDescription> {
  const servers = await context.hosts.recorded();
  const found = servers.find(({ server, hostName }) => server.id === session.serverId && hostName === session.host);
  return {
    kind: "session",
    session,
    effectiveModel: context.config.provider?.type === "echo" ? "echo" : (session.model ?? context.config.session.model),
    turns,
    expiresAt: session.expiresAt,
    folder: found === undefined ? null : sessionFolderPath(found.server.home, session.id),
    server: found === undefined ? null : (await viewRecorded(context, found)).view,
  };
}

/** Describes a user. Null if the fleet knows nothing about the user. */
export async function describeUser(context: DescribeContext, user: string): Promise<UserDescription | null> {
  const { store, hosts } = context;
  const [placement, limits, recorded, sessions, tokens] = await Promise.all([
    store.placements.read(user),
    store.limits.read(user),
    hosts.recorded(),
    gatherSessions(context, user),
    listTokens(store, user),
  ]);
  const own = recorded.filter(({ server }) => server.user === user);
  const suspended = limits?.suspended ?? null;
  if ((placement ?? suspended) === null && own.length + sessions.length + tokens.length === 0) return null;
  const servers = await Promise.all(own.map(async (found) => (await viewRecorded(context, found)).view));
  const placed = own.find(({ hostName }) => hostName === placement?.host) ?? own[0];
  const quota = await quotaOf(context, user, placed?.hostName ?? placement?.host ?? null);
  return { kind: "user", user, placement, suspended, servers, sessions, tokens, quota };
}

/** Returns the quota as in {@link UserDescription}. Warns if GitHub does not answer. */
async function quotaOf({ config, hosts, warn }: DescribeContext, user: string, hostName: string | null) {
  if (config.provider !== null) return null;
  try {
    const host = await hosts.hostOf({ hostName });
    return (await host?.quota({ user })) ?? null;
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    warn(`The Copilot quota of ${quote(user)} is not known: ${reason}`);
    return null;
  }
}

/**
 * Returns a server's host, and the view that this host sends. If the host does not answer, the view comes from the
 * server's record, and `host` is null.
 */
async function viewRecorded(
  { hosts }: DescribeContext,
  found: RecordedServer,
): Promise<{ view: ServerView; host: Host | null }> {
  const { server, hostName } = found;
  const host = await hosts.hostOf(found);
  try {
    if (host !== null) return { host, view: await host.server({ id: server.id }) };
  } catch (error) {
    if (host === hosts.own || !isFleetError(error)) throw error;
  }
  return { host: null, view: viewServerOf(hostName ?? "", server) };
}
