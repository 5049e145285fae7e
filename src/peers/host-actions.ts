import type { RollingRequest, SpawnRequest, StopRequest } from "../fleet/options.js";
import type { RollingResult } from "../pool/recycle/rolling.js";
import type { ServerView } from "../pool/server.js";
import type { Stopped } from "../pool/stop/stop.js";
import type { LogPosition } from "../serve/logs/log-tail.js";
import type { GcOptions, GcResult } from "../sessions/gc/collect.js";
import type { EvictionResult, LoadedSession } from "../sessions/memory/eviction.js";
import type { Released } from "../sessions/memory/release.js";
import type { SessionView } from "../sessions/view.js";

export type Spawned = { server: ServerView; created: boolean };
export type Restarted = { stopped: Stopped[]; servers: ServerView[] };

/** The end of a server's log, and the position to read on from. */
export interface LogEnd {
  /** The server's id. */
  server: string;
  /** Its path, on the server's host. */
  log: string;
  lines: string[];
  at: LogPosition;
}

/** The signal cancels a call because its caller has gone. */
export type Call = { signal?: AbortSignal };

/**
 * The operations that a host performs on its own servers and sessions, for itself or for another host: see {@link
 * OwnHost} and {@link OtherHost}. Servers are named by their full ids.
 */
export interface HostActions {
  /** Null if the fleet is on one host. */
  readonly name: string | null;

  spawn(user: string, request: SpawnRequest, call?: Call): Promise<Spawned>;
  spawnMany(users: readonly string[], request: SpawnRequest, call?: Call): Promise<ServerView[]>;
  serverFor(user: string, request: SpawnRequest, call?: Call): Promise<ServerView>;
  servers(call?: Call): Promise<ServerView[]>;
  /** @throws FleetError `FLEET_SERVER_NOT_FOUND`. */
  server(id: string, call?: Call): Promise<ServerView>;
  stop(ids: readonly string[], request: StopRequest): Promise<Stopped[]>;
  restart(ids: readonly string[], request: StopRequest): Promise<Restarted>;
  restartRolling(ids: readonly string[], request: RollingRequest): Promise<RollingResult>;
  logEnd(id: string, lines: number, call?: Call): Promise<LogEnd>;
  /** Yields the bytes that are added to the log, until the signal aborts. */
  followLog(id: string, at: LogPosition, signal: AbortSignal): AsyncIterable<Buffer>;

  sessions(user: string | undefined, call?: Call): Promise<SessionView[]>;
  sessionOf(id: string, user: string, call?: Call): Promise<SessionView>;
  loaded(call?: Call): Promise<LoadedSession[]>;
  evict(ids: readonly string[], call?: Call): Promise<EvictionResult>;
  deleteSessions(ids: readonly string[], user: string | undefined, call?: Call): Promise<string[]>;
  gc(request: GcOptions): Promise<GcResult>;
  /** Releases a user's sessions, each between its turns, so that another host with the same storage may take them. */
  release(user: string, waitMs: number, call?: Call): Promise<Released>;
}
