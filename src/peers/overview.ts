import type { Config } from "../config/schema.js";
import { compareText } from "../config/values/text.js";
import type { HostRecord } from "../model/host.js";
import type { Registry, SupervisorRecord } from "../model/registry.js";
import { liveSupervisor, type PoolState, poolState } from "../pool/admission.js";
import type { ServerView } from "../pool/server.js";
import { ownHostName } from "../runtime/files/host-note.js";
import { gatherServers, type SessionPlaces, withSessionCounts } from "./gather.js";

export interface HostView {
  name: string;
  /** `unattended`: no `serve` runs there. `gone`: its heartbeats have ended. */
  state: "serving" | "draining" | "unattended" | "gone";
  /** Null if the fleet is on one host. */
  term: number | null;
  /** The time since its last heartbeat, in milliseconds. Null in a fleet on one host, or if the host is gone. */
  heartbeatAgeMs: number | null;
  /** `host:port` of its front door. */
  door: string | null;
  startedAt: string | null;
  /** How many of its servers run. */
  servers: number;
  /** How many sessions are in the memory of these servers. */
  sessions: number;
  memoryBytes: number;
}

export interface Overview {
  /** The state of this host's pool. */
  pool: PoolState;
  hosts: HostView[];
  servers: ServerView[];
  /** `active`: in a server's memory; `idle`: all other recorded sessions. */
  sessions: { active: number; idle: number };
}

export interface OverviewContext extends SessionPlaces {
  config: Config;
  stateRoot: string;
}

export async function lookAtAll(context: OverviewContext): Promise<Overview> {
  const { store, hosts } = context;
  const registry = await store.registry.read();
  const [entries, servers, loaded, records] = await Promise.all([
    hostEntries(context, registry),
    gatherServers(hosts),
    hosts.everywhere(async (host) => await host.loaded({})),
    store.sessions.list(),
  ]);
  const active = new Set(loaded.answers.flatMap(({ answer }) => answer.map(({ id }) => id)));
  const idle = records.filter(({ id }) => !active.has(id)).length;
  return {
    pool: poolState(registry),
    hosts: entries.map((entry) => ({ ...entry, ...sumOf(servers, entry.name, entries.length === 1) })),
    servers: withSessionCounts(servers, records, context.directory.own),
    sessions: { active: active.size, idle },
  };
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
