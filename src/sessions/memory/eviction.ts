import { deadline } from "../../base/clock.js";
import { isFleetError } from "../../base/errors.js";
import type { EventLog } from "../../base/event.js";
import type { OnProgress } from "../../base/progress.js";
import type { ServerRecord } from "../../base/server.js";
import { isInTurn, RawConnection } from "../../runtime/client/raw-connection.js";
import { isLoadedBy, lastWrite } from "../../runtime/history/session-state.js";
import { provenEndpoint } from "../../runtime/process/probe.js";
import { RpcError } from "../../runtime/wire/rpc-client.js";
import { isRunning } from "../../servers/server.js";
import { loadedSessions } from "../../servers/stop.js";
import { setEvictionMarker } from "../../servers/use-markers.js";
import type { Store } from "../../store/store.js";
import { knownLoaded } from "./open-notes.js";

export interface EvictionContext {
  store: Store;
  events: EventLog;
  /** How long a server may take for one answer, in milliseconds. */
  answerMs: number;
  onProgress?: OnProgress | undefined;
}

export type KeptReason = "not active" | "in a turn" | "leased" | "in use" | "not found";

export interface EvictionResult {
  evicted: string[];
  skipped: { id: string; reason: KeptReason }[];
}

/** Unloads the `count` least recently used sessions that can be unloaded, except those in `keep`. */
export async function unloadOldest(
  server: ServerRecord,
  count: number,
  keep: ReadonlySet<string>,
  context: EvictionContext,
): Promise<EvictionResult> {
  const candidates = knownLoaded(server)
    .filter((id) => !keep.has(id))
    .map((id) => ({ id, used: lastWrite(server.home, id) }))
    .sort((a, b) => a.used - b.used)
    .map(({ id }) => id);
  return await unload(server, candidates, count, context);
}

export interface LoadedSession {
  id: string;
  /** When the session's history was last written, in milliseconds since the epoch. */
  usedMs: number;
}

/** All sessions in the memory of these servers. The least recently used one comes first. */
export function allLoaded(servers: readonly ServerRecord[]): (LoadedSession & { server: ServerRecord })[] {
  return servers
    .filter(isRunning)
    .flatMap((server) => loadedSessions(server).map((id) => ({ server, id, usedMs: lastWrite(server.home, id) })))
    .sort((a, b) => a.usedMs - b.usedMs);
}

/**
 * Unloads the sessions with these ids from every server that has them in memory. Any process may do this at any time.
 */
export async function evict(
  servers: readonly ServerRecord[],
  ids: readonly string[],
  context: EvictionContext,
): Promise<EvictionResult> {
  const loaded = allLoaded(servers);
  const result: EvictionResult = { evicted: [], skipped: [] };
  for (const [done, id] of ids.entries()) {
    context.onProgress?.({ done, total: ids.length, turns: [] });
    const found = loaded.filter((candidate) => candidate.id === id);
    if (found.length === 0) result.skipped.push({ id, reason: "not active" });
    for (const { server } of found) {
      const { evicted, skipped } = await unload(server, [id], 1, context);
      result.evicted.push(...evicted);
      result.skipped.push(...skipped);
    }
  }
  return result;
}

/** Unloads sessions of one server in the given order, until `count` are unloaded. Their state stays on disk. */
async function unload(
  server: ServerRecord,
  candidates: readonly string[],
  count: number,
  context: EvictionContext,
): Promise<EvictionResult> {
  const result: EvictionResult = { evicted: [], skipped: [] };
  if (candidates.length === 0 || count <= 0) return result;
  using limit = deadline(context.answerMs);
  await using connection = await RawConnection.open(provenEndpoint(server), limit.signal);
  for (const id of candidates) {
    if (result.evicted.length >= count) break;
    const reason = await unloadOne(server, id, connection, context.store);
    if (reason === null) {
      result.evicted.push(id);
      context.events.note({ type: "session.evicted", user: server.user, sessionId: id, serverId: server.id });
    } else result.skipped.push({ id, reason });
  }
  return result;
}

async function unloadOne(
  server: ServerRecord,
  id: string,
  connection: RawConnection,
  store: Store,
): Promise<KeptReason | null> {
  const { home, process } = server;
  if (process === null || !isRunning(server) || !isLoadedBy(home, id, process)) return "not active";
  if ((await store.leases.read(id)) !== null) return "leased";
  using marker = setEvictionMarker(server, id);
  if (marker === null) return "in use";
  try {
    const inTurn = await isInTurn(connection, id);
    if (inTurn !== false) return inTurn === true ? "in a turn" : "not active";
    await connection.request("sessions.close", { sessionId: id });
    return null;
  } catch (error) {
    if (error instanceof RpcError) return "not active"; // its last client has just left
    throw error;
  }
}

/** The activity of a server at one moment. `latencyMs` and `turns` are null if the server does not answer in time. */
export interface ServerActivity {
  id: string;
  /** The time from a ping to its answer, in milliseconds. */
  latencyMs: number | null;
  /** The ids of its sessions that are in a turn. */
  turns: string[] | null;
}

/**
 * Asks each server that should be running for its activity, each over a separate connection.
 * @param answerMs how long one server may take, in milliseconds
 */
export async function askActivity(servers: readonly ServerRecord[], answerMs: number): Promise<ServerActivity[]> {
  const asked = servers.filter(({ state }) => state === "ready" || state === "unhealthy" || state === "draining");
  return await Promise.all(asked.map(async (server) => await activityOf(server, answerMs)));
}

async function activityOf(server: ServerRecord, answerMs: number): Promise<ServerActivity> {
  const { id } = server;
  using limit = deadline(answerMs);
  try {
    await using connection = await RawConnection.open(provenEndpoint(server), limit.signal);
    const start = performance.now();
    await connection.request("ping", { message: "activity" });
    const latencyMs = performance.now() - start;
    const sessions = loadedSessions(server);
    const answers = await Promise.all(sessions.map(async (session) => await isInTurn(connection, session)));
    return { id, latencyMs, turns: sessions.filter((_, index) => answers[index] === true) };
  } catch (error) {
    if (isFleetError(error)) return { id, latencyMs: null, turns: null };
    throw error;
  }
}
