import type { Config } from "../config/schema.js";
import { isFleetError, quote } from "../errors.js";
import { listTokens, type TokenView } from "../identity/tokens.js";
import type { Placement } from "../model/placement.js";
import type { RecordedSource, ServerRecord } from "../model/server.js";
import type { QuotaPart } from "../model/usage/quota.js";
import type { Suspension } from "../model/usage/user-limits.js";
import { type ServerView, viewServerOf } from "../pool/server.js";
import { sessionFolderPath } from "../runtime/history/session-state.js";
import type { SessionFinder } from "../sessions/find.js";
import type { SessionView } from "../sessions/view.js";
import type { RecordedServer } from "./fleet-hosts.js";
import { type GatherSessionsContext, gatherSessions, viewSessionOf } from "./gather.js";
import type { Host } from "./host.js";

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
   * The model of the session's next turn: the session's own model, or else `session.model` of the configuration. `echo` if
   * the echo model answers, which ignores both.
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

export interface DescribeContext extends GatherSessionsContext {
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
