import { FleetError, option } from "../../errors.js";
import type { ServerRecord } from "../../model/server.js";
import { isRunning } from "../../pool/server.js";
import { loadedSessions } from "../../pool/stop/drain.js";
import { setEvictionMarker, usedSessions } from "../../pool/use-markers.js";
import { isInTurn } from "../../runtime/client/activity.js";
import { RawConnection } from "../../runtime/client/raw-connection.js";
import { deadline } from "../../runtime/deadline.js";
import { isLoadedBy, lastWrite } from "../../runtime/history/session-state.js";
import { provenEndpoint } from "../../runtime/process/probe.js";
import { RpcError } from "../../runtime/wire/rpc-client.js";
import type { Store } from "../../store/ports.js";
import { knownLoaded } from "./loaded.js";

export interface EvictionContext {
  store: Store;
  /** How long a server may take for one answer, in milliseconds. */
  answerMs: number;
}

/** Why a session stays in memory. */
export type KeptReason = "not active" | "in a turn" | "leased" | "in use" | "not found";

export interface EvictionResult {
  evicted: string[];
  skipped: { id: string; reason: KeptReason }[];
}

/**
 * Makes room for one more session in a server's memory. At the cap, unloads the least recently used idle session. Never
 * unloads a session in a turn, under a lease or being opened. The caller must have set the session's use marker, so
 * that the later of two simultaneous callers counts both sessions.
 *
 * @param maxActive how many sessions may be in the server's memory
 * @returns false if not enough sessions could be unloaded
 */
export async function makeRoom(
  server: ServerRecord,
  id: string,
  maxActive: number,
  context: EvictionContext,
): Promise<boolean> {
  const active = new Set([...knownLoaded(server), ...usedSessions(server), id]);
  const excess = active.size - maxActive;
  if (excess <= 0) return true;
  const { evicted } = await unloadOldest(server, excess, new Set([id]), context);
  return evicted.length === excess;
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

/** A session in a server's memory. */
export interface LoadedSession {
  id: string;
  /** When it was last written to, in milliseconds since the epoch. */
  usedMs: number;
}

/** All sessions in the memory of these servers, least recently used first. */
export function allLoaded(servers: readonly ServerRecord[]): (LoadedSession & { server: ServerRecord })[] {
  return servers
    .filter(isRunning)
    .flatMap((server) => loadedSessions(server).map((id) => ({ server, id, usedMs: lastWrite(server.home, id) })))
    .sort((a, b) => a.usedMs - b.usedMs);
}

/** Unloads sessions from all of these servers that have them in memory. Any process may do this at any time. */
export async function evict(
  servers: readonly ServerRecord[],
  ids: readonly string[],
  context: EvictionContext,
): Promise<EvictionResult> {
  const loaded = allLoaded(servers);
  const result: EvictionResult = { evicted: [], skipped: [] };
  for (const id of ids) {
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
export async function unload(
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
    if (reason === null) result.evicted.push(id);
    else result.skipped.push({ id, reason });
  }
  return result;
}

/** @returns why the session stays, or null */
async function unloadOne(
  server: ServerRecord,
  id: string,
  connection: RawConnection,
  store: Store,
): Promise<KeptReason | null> {
  const pid = isRunning(server) ? server.process?.pid : undefined;
  if (pid === undefined || !isLoadedBy(server.home, id, pid)) return "not active";
  if ((await store.leases.read(id)) !== null) return "leased";
  using marker = setEvictionMarker(server, id);
  if (marker === null) return "in use";
  return await unloadIdle(id, connection);
}

/** Unloads a session unless it is in a turn. The caller holds its eviction marker. @returns why it stays, or null. */
export async function unloadIdle(
  id: string,
  connection: RawConnection,
): Promise<Extract<KeptReason, "in a turn" | "not active"> | null> {
  try {
    const inTurn = await isInTurn(async (method, params) => await connection.request(method, params), id);
    if (inTurn !== false) return inTurn === true ? "in a turn" : "not active";
    await connection.request("sessions.close", { sessionId: id });
    return null;
  } catch (error) {
    if (error instanceof RpcError) return "not active"; // its last client has just left
    throw error;
  }
}

export function exhausted(server: ServerRecord, maxActive: number): FleetError {
  const message = `Server ${server.id} has ${maxActive} sessions in memory (session.maxActive), and none of them is idle.`;
  return new FleetError("FLEET_SESSIONS_EXHAUSTED", message, {
    suggestions: [
      "copilotfleet list --state active",
      `Wait longer: ${option("wait", "2m")}`,
      "Raise session.maxActive.",
    ],
  });
}
