import type { Config } from "../config/schema.js";
import { compareText } from "../config/values/text.js";
import type { HostRecord } from "../model/host.js";
import type { Registry, SupervisorRecord } from "../model/registry.js";
import type { SessionRecord } from "../model/session.js";
import { liveSupervisor, type PoolState, poolState } from "../pool/admission.js";
import type { ServerView } from "../pool/server.js";
import { ownHostName } from "../runtime/files/host-note.js";
import type { ServerActivity } from "../sessions/memory/activity.js";
import { warnOfUnreadable } from "../sessions/problems.js";
import type { Gathered } from "./fleet-hosts.js";
import { gatherServers, type SessionPlaces, withSessionCounts } from "./gather.js";

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
 * A server with its activity at this moment. `turns` and `latencyMs` are null if the server does not run or does not answer.
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
   * The state of the user's own server; null if the user has none. If the user has servers on several hosts, prefers the
   * state of one that runs.
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

export interface OverviewContext extends SessionPlaces {
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
  const counted = withSessionCounts(views, records, context.directory.own);
  const servers = counted.map((server) => withActivity(server, asked.answers));
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
