import { isFleetError } from "../../errors.js";
import { sessionMoved } from "../../hosts/problems.js";
import { serverIdOf } from "../../model/ids.js";
import type { Registry } from "../../model/registry.js";
import type { ServerRecord } from "../../model/server.js";
import { mayUse, type SessionRecord } from "../../model/session.js";
import { admits, closedBy, poolDraining } from "../../pool/admission.js";
import { isClaimed } from "../../pool/claims/held-claim.js";
import type { Pool } from "../../pool/pool.js";
import { hasEnded, isRunning } from "../../pool/server.js";
import type { SpawnOptions } from "../../pool/start/start.js";
import { isUsed, setEvictionMarker } from "../../pool/use-markers.js";
import { isTimeout, pause } from "../../runtime/deadline.js";
import { isLoadedBy } from "../../runtime/history/session-state.js";
import type { Store } from "../../store/ports.js";
import type { SessionsContext } from "../context.js";
import { markedRecord } from "../find.js";
import type { TurnLease } from "../leases/seen.js";
import { exhausted, makeRoom } from "../memory/eviction.js";
import { serverDraining, sessionNotFound } from "../problems.js";

export interface Chooser extends Pick<SpawnOptions, "sharedUntil"> {
  user: string;
  /**
   * A lease on the session that the caller holds. With it, a session on shared servers may be opened where the user is
   * placed, and not only where it was last.
   */
  lease?: TurnLease | undefined;
  signal: AbortSignal;
}

/**
 * The server on which to open a recorded session: its owner's own server, or the shared server that the record names. Only
 * the holder of its lease may move it. A session that no host has is brought to this host, if it belongs here.
 *
 * @param asked the present record, because an earlier one may name a server that no longer has the session
 */
export async function serverFor(
  { pool, store, takeover, directory }: Pick<SessionsContext, "pool" | "store" | "takeover" | "directory">,
  asked: SessionRecord,
  { user, lease, signal, sharedUntil }: Chooser,
): Promise<ServerRecord> {
  await directory.assertStorage();
  const record = (await directory.has(asked)) ? asked : await takeover.settle(asked, signal);
  const start = { signal, sharedUntil };
  if (record.serverId === serverIdOf(record.owner)) return (await pool.serverOf(record.owner, start)).server;
  if (lease === undefined) return await pool.shared(record.serverId, start);
  return await serverUnderLease(record, { store, pool, user, lease, signal });
}

export interface Move {
  store: Store;
  pool: Pool;
  /** The user whose placement decides where to open a session that no server has in memory. */
  user: string;
  lease: TurnLease;
  signal: AbortSignal;
}

/**
 * Returns the shared server on which the holder of a session's lease opens the session. If a server has the session in
 * memory, this is that server. Otherwise it is the server on which the holder is placed, and the record is changed to name
 * it.
 *
 * Two servers must never have the same session in memory. A process that uses a session without a lease sets its use marker
 * first, and then checks that the record still names the server. So this function sets an eviction marker on the old server
 * before it changes the record, and leaves the session there if it is in use. If both processes do this at once, at least
 * one of them sees the other.
 *
 * @param record If somebody moved the session after this was read, the returned server may be wrong. The caller finds out
 * when it reads the record under its use marker.
 * @throws FleetError `FLEET_LEASE_LOST`, and as `Pool.shared`.
 */
export async function serverUnderLease(
  record: SessionRecord,
  { store, pool, user, lease, signal }: Move,
): Promise<ServerRecord> {
  const { id } = record;
  const { servers } = await store.registry.read();
  const holder = Object.values(servers).find((server) => server.isolation === "shared" && isLoaded(server, id));
  const last = servers[record.serverId];
  // This also applies if the old server is no longer recorded and no other has the session. A server without a record cannot
  // have markers, so it is started again.
  if (last === holder) return await pool.shared(record.serverId, { signal });
  // Check this before choosing another server, which would be started in vain.
  if (holder === undefined && last !== undefined && isUsed(last, id))
    return await pool.shared(record.serverId, { signal });
  const target = holder ?? (await pool.sharedServerFor(user, { signal })).server;
  if (target.id === record.serverId) return target;
  using marker = last && setEvictionMarker(last, id);
  if (marker === null || (last !== undefined && isLoaded(last, id)))
    return await pool.shared(record.serverId, { signal });
  await lease.check();
  await store.sessions.update(id, (draft) => {
    // Leave the record alone if this host released the session, or another host took it, after the record was read.
    // Comparing `serverId` is not enough, because servers of two hosts may have the same id.
    const isOurs = draft.host === record.host && draft.term === record.term && draft.released === record.released;
    const isStill = isOurs && draft.from?.mark === record.from?.mark && draft.serverId === record.serverId;
    if (isStill) draft.serverId = target.id;
  });
  return target;
}

function isLoaded(server: ServerRecord, id: string): boolean {
  return server.process !== null && isRunning(server) && isLoadedBy(server.home, id, server.process.pid);
}

/**
 * Why a session cannot be used on a server now: the server's memory is full of busy sessions, the server is being drained, this
 * launch of it has ended, or the session is elsewhere.
 */
export type Refusal = "full" | "draining" | "ended" | "moved";

/** A session on the server where it is about to be used. */
interface Place {
  record: SessionRecord;
  server: ServerRecord;
}

/** How often to look whether others are done, in milliseconds. */
const DRAIN_POLL_MS = 20;
const ROOM_POLL_MS = 50;

/** Decides where one user may use a session. Everything here is checked under the use marker. */
export class Admission {
  readonly #context: SessionsContext;
  readonly #user: string;

  constructor(context: SessionsContext, user: string) {
    this.#context = context;
    this.#user = user;
  }

  /**
   * Whether the session may be used there, and its present record. A drain is recorded first and then looks for use markers. A
   * move of the session, a release and gc set their eviction marker, or change the record, first, and then look for them. So
   * either this notices the other process, or the other process notices the use marker.
   *
   * @param isOpen whether the caller has the session open there, so that it needs no room in the server's memory
   */
  async check(
    { record, server }: Place,
    { isOpen, signal }: { isOpen: boolean; signal: AbortSignal | undefined },
  ): Promise<{ record: SessionRecord; refusal: Refusal | null }> {
    const { store, directory } = this.#context;
    const registry = await store.registry.read();
    const by = closedBy(registry);
    if (by !== null) throw poolDraining(by);
    if (!admits(registry, server)) {
      return { record, refusal: isBeingDrained(registry, server) ? "draining" : "ended" };
    }
    // Sessions never move away from a user's own server, and without shared storage they cannot change hosts.
    if (isOpen && server.isolation === "per-user" && !directory.isShared) return { record, refusal: null };
    if (isOpen && directory.isShared) await directory.assertStorage();
    const now = isOpen ? await store.sessions.read(record.id) : await this.recordOn({ record, server }, signal);
    if (now === null) return { record, refusal: null }; // it was deleted, so its server refuses the turn
    if (!mayUse(now, this.#user)) throw sessionNotFound(record.id);
    const isHere = now.serverId === server.id && (await directory.has(now));
    if (!isHere || isOpen) return { record: now, refusal: isHere ? null : "moved" };
    return { record: now, refusal: await this.room({ record: now, server }) };
  }

  /**
   * Reads the record again on purpose, now that the use marker is set: gc deletes the record first and then looks for
   * markers, and the session may have moved since the caller read its record. The user may also have deleted it, and another
   * user may have its id now.
   */
  async recordOn({ record: { id }, server }: Place, signal: AbortSignal | undefined): Promise<SessionRecord> {
    const record = await markedRecord(this.#context.store, server, id, signal);
    if (record === null || !mayUse(record, this.#user)) throw sessionNotFound(id);
    return record;
  }

  /** Whether the server is still being drained. A closed pool is not waited for. */
  async isDraining(server: ServerRecord): Promise<boolean> {
    const registry = await this.#context.store.registry.read();
    return closedBy(registry) === null && isBeingDrained(registry, server);
  }

  /** Makes room for the session in the server's memory. @returns the reason if there is none */
  async room({ record, server }: Place): Promise<Refusal | null> {
    const { store, config } = this.#context;
    const eviction = { store, answerMs: config.health.timeoutMs };
    try {
      return (await makeRoom(server, record.id, config.session.maxActive, eviction)) ? null : "full";
    } catch (error) {
      if (await isEndOf(server, error)) return "ended";
      throw error;
    }
  }

  /**
   * Waits before the next try, or not at all if the caller `hurries`.
   *
   * @param untilMs how long to try, by `performance.now()`
   * @throws the error for this refusal when it is too late; the signal's reason.
   */
  async pauseAfter(
    refusal: Refusal,
    { record, server }: Place,
    { untilMs, signal, hurries = false }: { untilMs: number; signal: AbortSignal | undefined; hurries?: boolean },
  ): Promise<void> {
    const isLate = performance.now() > untilMs || (signal?.aborted === true && isTimeout(signal.reason));
    if (isLate && refusal === "full") throw exhausted(server, this.#context.config.session.maxActive);
    if (isLate) throw refusal === "moved" ? sessionMoved(record, null) : serverDraining(server.id);
    signal?.throwIfAborted();
    await pause(hurries ? 0 : pauseMs(refusal), undefined);
  }
}

/** False if the process that drains the server has died: the next start of the server then undoes the drain. */
function isBeingDrained({ servers }: Registry, server: ServerRecord): boolean {
  const now = servers[server.id];
  return now?.launchId === server.launchId && now.state === "draining" && isRunning(server) && isClaimed(now);
}

/** Whether an error shows that the server has ended. */
export async function isEndOf(server: ServerRecord, error: unknown): Promise<boolean> {
  const isLost = isFleetError(error, "FLEET_SERVER_LOST") || isFleetError(error, "FLEET_SERVER_UNREACHABLE");
  return isLost && (await hasEnded(server));
}

function pauseMs(refusal: Refusal): number {
  return refusal === "full" ? ROOM_POLL_MS * (0.5 + Math.random()) : DRAIN_POLL_MS;
}
