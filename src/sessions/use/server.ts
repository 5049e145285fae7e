import { mkdirSync, readdirSync, statSync, unlinkSync, utimesSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { isTimeout, pause } from "../../base/clock.js";
import { FleetError, isFleetError, option, systemCode } from "../../base/errors.js";
import { serverIdOf, userDigest } from "../../base/ids.js";
import type { Registry, ServerRecord } from "../../base/server.js";
import { mayUse, type SessionRecord } from "../../base/session.js";
import { countOf } from "../../base/values/text.js";
import { isLoadedBy } from "../../runtime/history/session-state.js";
import { isAlive, ownIdentity } from "../../runtime/process/process-table.js";
import { admits, closedBy, poolDraining } from "../../servers/admission.js";
import { sessionMoved } from "../../servers/directory.js";
import type { Pool } from "../../servers/pool.js";
import { hasEnded, isClaimed, isRunning } from "../../servers/server.js";
import type { SpawnOptions } from "../../servers/start.js";
import { isUsed, setEvictionMarker, usedSessions } from "../../servers/use-markers.js";
import type { Store } from "../../store/store.js";
import { type EvictionContext, unloadOldest } from "../memory/eviction.js";
import { knownLoaded } from "../memory/open-notes.js";
import { type SessionsContext, serverDraining, sessionNotFound } from "../problems.js";
import type { TurnLease } from "../seen.js";
import { markedRecord } from "../view.js";

interface Chooser extends Pick<SpawnOptions, "sharedUntil"> {
  user: string;
  /**
   * The caller's lease on the session. With it, the caller may move the session to the shared server of the user's
   * placement.
   */
  lease?: TurnLease | undefined;
  signal: AbortSignal;
}

/**
 * The server on which to open a recorded session: its owner's own server, or the shared server that the record names.
 * Only the holder of the session's lease may move the session. If no host has the session and this host should have it,
 * takes it over.
 *
 * These functions choose a server. Each starts the server if it does not run:
 *
 * | function                | server                                                         | also changes                       |
 * | ----------------------- | -------------------------------------------------------------- | ---------------------------------- |
 * | `serverFor`             | for a recorded session, by one of the other functions          | the session's host, after takeover |
 * | `serverUnderLease`      | for a recorded session on shared servers, for the lease holder | the session's server in its record |
 * | `Sessions.serverForNew` | for a user's new session, by `isolation`                       |                                    |
 * | `Pool.serverOf`         | the user's own server                                          |                                    |
 * | `Pool.shared`           | the shared server with the given id                            |                                    |
 * | `Pool.sharedServerFor`  | the shared server for the user, by `pool.strategy`             | the user's placement               |
 *
 * @param asked the current record. An earlier record may name a server that no longer has the session.
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
 * The shared server on which the holder of a session's lease opens the session: the server that has the session in
 * memory, or else the server on which the holder is placed. Changes the record to name this server.
 *
 * Two servers must never have the same session in memory. A process that uses a session without a lease first sets its
 * use marker, and then checks that the record still names the server. This function first sets an eviction marker on
 * the old server, and then changes the record. If both processes do this at once, at least one of them sees the other's
 * marker or change. A session that is in use stays where it is.
 *
 * @param record if somebody has moved the session since the caller read the record, the result may be wrong. The caller
 * notices the move, because it reads the record again under its use marker.
 * @throws FleetError `FLEET_LEASE_LOST`, and the errors of `Pool.shared`.
 */
export async function serverUnderLease(
  record: SessionRecord,
  { store, pool, user, lease, signal }: Move,
): Promise<ServerRecord> {
  const { id } = record;
  const { servers } = await store.registry.read();
  const holder = Object.values(servers).find((server) => server.isolation === "shared" && isLoaded(server, id));
  const last = servers[record.serverId];
  // Stay on the server that the record names if it has the session in memory. Also stay if `last` and `holder` are both
  // undefined: the registry no longer has that server, and no server has the session. In that case, `shared` starts
  // that server again.
  if (last === holder) return await pool.shared(record.serverId, { signal });
  // Check for a use first, because choosing another server also starts that server.
  if (holder === undefined && last !== undefined && isUsed(last, id))
    return await pool.shared(record.serverId, { signal });
  const target = holder ?? (await pool.sharedServerFor(user, { signal })).server;
  if (target.id === record.serverId) return target;
  using marker = last && setEvictionMarker(last, id);
  if (marker === null || (last !== undefined && isLoaded(last, id)))
    return await pool.shared(record.serverId, { signal });
  await lease.check();
  await store.sessions.update(id, (draft) => {
    // Leave the record alone if the session moved after it was read. Compare more than `serverId`, because
    // servers of two hosts may have the same id.
    const isOurs = draft.host === record.host && draft.term === record.term;
    const isStill = isOurs && draft.from?.mark === record.from?.mark && draft.serverId === record.serverId;
    if (isStill) draft.serverId = target.id;
  });
  return target;
}

function isLoaded(server: ServerRecord, id: string): boolean {
  return server.process !== null && isRunning(server) && isLoadedBy(server.home, id, server.process);
}

/**
 * Why a session cannot be used on a server now, and where `SessionUse` tries next:
 *
 * | refusal    | reason                                       | next try                                      |
 * | ---------- | -------------------------------------------- | --------------------------------------------- |
 * | `full`     | no session in the server's memory is idle    | the server in the record, after a pause       |
 * | `draining` | the server is being drained                  | the server in the record, once the drain ends |
 * | `ended`    | this launch has ended                        | the server in the record, started again       |
 * | `moved`    | the record names another server or host      | the server in the record                      |
 */
type Refusal = "full" | "draining" | "ended" | "moved";

/** A session, and the server on which to use it. */
interface SessionAt {
  record: SessionRecord;
  server: ServerRecord;
}

const DRAIN_POLL_MS = 20;
/** How long a use that waits for room relies on its last look at the state of the server, in milliseconds. */
const ROOM_LOOK_MS = 500;

/** Checks whether a user may use a session on a server. The caller must have set the use marker there before. */
export class UseCheck implements Disposable {
  readonly #context: SessionsContext;
  readonly #user: string;
  readonly #queue: RoomQueue;

  constructor(context: SessionsContext, user: string) {
    this.#context = context;
    this.#user = user;
    this.#queue = new RoomQueue(user);
  }

  /** Ends the wait for room. */
  [Symbol.dispose](): void {
    this.#queue.leave();
  }

  /**
   * Returns the session's current record, and the reason why the session cannot be used on the server now; null if it
   * can. A drain, a move, a release and gc first change a record or set an eviction marker, and then look for use
   * markers. So either this call notices the other process, or the other process notices the use marker.
   *
   * @param isOpen whether the caller has the session open on the server. It then needs no further room in memory.
   */
  async check(
    { record, server }: SessionAt,
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
    if (now === null) return { record, refusal: null }; // the session was deleted, so its server refuses the turn
    if (!mayUse(now, this.#user)) throw sessionNotFound(record.id);
    const isHere = now.serverId === server.id && (await directory.has(now));
    if (!isHere || isOpen) return { record: now, refusal: isHere ? null : "moved" };
    return { record: now, refusal: await this.room({ record: now, server }) };
  }

  /**
   * Reads the record again, now that the use marker is set, because the session may have been moved or deleted after
   * the caller's first read, and another user may have its id.
   */
  async recordOn({ record: { id }, server }: SessionAt, signal: AbortSignal | undefined): Promise<SessionRecord> {
    const record = await markedRecord(this.#context.store, server, id, signal);
    if (record === null || !mayUse(record, this.#user)) throw sessionNotFound(id);
    return record;
  }

  /**
   * Whether to continue waiting after a refusal: the server is still being drained, or other uses are ahead of this one
   * in the queue for room. False if the pool is closed, because the server then does not come back.
   */
  async mustWait(refusal: Refusal, { record, server }: SessionAt): Promise<boolean> {
    if (refusal !== "draining" && refusal !== "full") return false;
    const registry = await this.#context.store.registry.read();
    if (closedBy(registry) !== null) return false;
    if (refusal === "draining") return isBeingDrained(registry, server);
    return admits(registry, server) && !(await this.#mayEnter({ record, server }));
  }

  /** Makes room for the session in the server's memory. @returns null, or the reason why there is no room */
  async room({ record, server }: SessionAt): Promise<Refusal | null> {
    const { store, config, events } = this.#context;
    const eviction = { store, events, answerMs: config.health.timeoutMs };
    try {
      if (!(await this.#mayEnter({ record, server }))) return "full";
      const hasRoom = await makeRoom(server, record.id, config.session.maxActive, eviction);
      if (hasRoom) this.#queue.enter();
      else this.#queue.waitAt(server);
      return hasRoom ? null : "full";
    } catch (error) {
      if (await isEndOf(server, error)) return "ended";
      throw error;
    }
  }

  /**
   * Whether this use may look for room. A session that is in memory under a lease need not wait for others,
   * because it cannot be unloaded for them.
   */
  async #mayEnter({ record, server }: SessionAt): Promise<boolean> {
    if (this.#queue.mayEnter(server)) return true;
    return isLoaded(server, record.id) && (await this.#context.store.leases.read(record.id)) !== null;
  }

  /**
   * Waits before the next try.
   *
   * @param options.untilMs the time, by `performance.now()`, after which the caller gives up
   * @param options.hurries whether to try again at once
   * @throws the error for this refusal after `untilMs`; the signal's reason when it aborts.
   */
  async pauseAfter(
    refusal: Refusal,
    { record, server }: SessionAt,
    { untilMs, signal, hurries = false }: { untilMs: number; signal: AbortSignal | undefined; hurries?: boolean },
  ): Promise<void> {
    const isLate = performance.now() > untilMs || (signal?.aborted === true && isTimeout(signal.reason));
    if (isLate && refusal === "full") throw exhausted(server, this.#context.config.session.maxActive);
    if (isLate) throw refusal === "moved" ? sessionMoved(record, null) : serverDraining(server.id);
    signal?.throwIfAborted();
    if (refusal === "full" && !hurries) {
      await this.#queue.untilHead(server, Math.min(ROOM_LOOK_MS, untilMs - performance.now()), signal);
    } else await pause(hurries ? 0 : DRAIN_POLL_MS, undefined);
  }
}

/**
 * Whether a live process drains this launch of the server. If that process has died, the next start of the server
 * undoes the drain.
 */
function isBeingDrained({ servers }: Registry, server: ServerRecord): boolean {
  const now = servers[server.id];
  return now?.launchId === server.launchId && now.state === "draining" && isRunning(server) && isClaimed(now);
}

/** Whether an error shows that the server has ended. */
export async function isEndOf(server: ServerRecord, error: unknown): Promise<boolean> {
  const isLost = isFleetError(error, "FLEET_SERVER_LOST") || isFleetError(error, "FLEET_SERVER_UNREACHABLE");
  return isLost && (await hasEnded(server));
}

/**
 * Whether a command has stopped this launch of the server, or is stopping it. A server that ends by itself becomes
 * `failed`, or keeps its state until somebody notices its end.
 */
export async function isStopped({ store }: Pick<SessionsContext, "store">, server: ServerRecord): Promise<boolean> {
  const now = (await store.registry.read()).servers[server.id];
  return now?.state === "stopped" || (now?.launchId === server.launchId && now.state === "draining");
}

/** How often a waiter refreshes its file, in milliseconds. */
const RENEW_MS = 300;
/** A waiter that has not refreshed its file for this long, in milliseconds, no longer counts. */
const SILENT_MS = 2_000;
/** How long a process relies on its last look at the queue, in milliseconds. */
const LOOK_MS = 10;
/** How often a waiter looks at the queue, in milliseconds. */
const POLL_MS = 25;
/** After this time, in milliseconds, a queue without waiters forgets that a user got room. */
const REMEMBERED_MS = 60_000;
const SEPARATOR = "~";
const SERVED = "served";

let sequence = 0;

/** For each queue, by its folder: the first waiter at the last look (`head`). All waiters of this process share it. */
const looks = new Map<string, { atMs: number; head: string | undefined }>();

/**
 * The place of one use in the queue for room in a server's memory (`session.maxActive`). Each waiter is an empty file
 * in a folder of the server, which all processes see. Among the waiting users, the one who got room the longest ago is
 * next. Among the uses of one user, the earliest is next. So a user with many waiting prompts does not hold up other
 * users.
 */
export class RoomQueue implements Disposable {
  readonly #user: string;
  #place: { folder: string; name: string; renewedMs: number } | undefined;

  constructor(user: string) {
    this.#user = userDigest(user);
  }

  /**
   * Whether this use may look for room now: nobody waits, or this use is first in the queue. Otherwise, adds this use
   * to the queue. Only the first use may look, because two uses that look at once count each other, and neither finds
   * room.
   */
  mayEnter({ home }: ServerRecord): boolean {
    const folder = join(dirname(home), "waits");
    if (this.#place !== undefined && this.#place.folder !== folder) this.leave();
    if (this.#place === undefined && headOf(folder) === undefined) return true;
    this.#wait(folder);
    return [undefined, this.#place?.name].includes(headOf(folder));
  }

  /** Waits until this use may look for room again, until `ms` milliseconds have passed, or until `signal` aborts. */
  async untilHead(server: ServerRecord, ms: number, signal: AbortSignal | undefined): Promise<void> {
    const untilMs = performance.now() + ms;
    do await pause(POLL_MS, undefined);
    while (!this.mayEnter(server) && performance.now() < untilMs && signal?.aborted !== true);
  }

  /** Adds this use to the queue, or refreshes its file there. Returns at once. */
  waitAt({ home }: ServerRecord): void {
    this.#wait(join(dirname(home), "waits"));
  }

  #wait(folder: string): void {
    const now = Date.now();
    if (this.#place === undefined) {
      const { pid, startTicks, bootId } = ownIdentity();
      const name = [this.#user, now, pid, startTicks, bootId, sequence++].join(SEPARATOR);
      mkdirSync(folder, { recursive: true, mode: 0o700 });
      writeFileSync(join(folder, name), "", { flag: "wx", mode: 0o600 });
      this.#place = { folder, name, renewedMs: now };
      looks.delete(folder);
    } else if (now - this.#place.renewedMs > RENEW_MS) {
      touch(join(folder, this.#place.name), now);
      this.#place.renewedMs = now;
    }
  }

  /** Records that this use got room, and leaves the queue. */
  enter(): void {
    if (this.#place === undefined) return;
    const { folder } = this.#place;
    touch(join(folder, servedName(this.#user)), Date.now());
    this.leave();
  }

  leave(): void {
    if (this.#place === undefined) return;
    const { folder, name } = this.#place;
    this.#place = undefined;
    remove(join(folder, name));
    looks.delete(folder);
  }

  [Symbol.dispose](): void {
    this.leave();
  }
}

/** The file name of the first waiter in the queue. Undefined if nobody waits. */
function headOf(folder: string): string | undefined {
  const known = looks.get(folder);
  const now = performance.now();
  if (known !== undefined && now - known.atMs < LOOK_MS) return known.head;
  if (looks.size > 1_000) looks.clear();
  const head = findHead(folder);
  looks.set(folder, { atMs: now, head });
  return head;
}

function findHead(folder: string): string | undefined {
  const waiting = new Map<string, string[]>();
  const served: string[] = [];
  for (const name of namesIn(folder)) {
    const user = name.slice(0, name.indexOf(SEPARATOR));
    if (user === SERVED) served.push(name);
    else waiting.set(user, [...(waiting.get(user) ?? []), name]);
  }
  const users = [...waiting].map(([user, names]) => ({
    lastMs: timeOf(join(folder, servedName(user))),
    names: names.sort((a, b) => sinceOf(a) - sinceOf(b) || sequenceOf(a) - sequenceOf(b)),
  }));
  users.sort((one, other) => one.lastMs - other.lastMs || sinceOf(one.names[0]) - sinceOf(other.names[0]));
  for (const { names } of users) for (const name of names) if (waits(folder, name)) return name;
  for (const name of served) if (Date.now() - timeOf(join(folder, name)) > REMEMBERED_MS) remove(join(folder, name));
  return undefined;
}

/** When a waiter joined the queue, in milliseconds since the epoch. */
function sinceOf(name = ""): number {
  return Number(name.split(SEPARATOR)[1]);
}

/** Orders the waiters of one process that joined the queue in the same millisecond. */
function sequenceOf(name: string): number {
  return Number(name.split(SEPARATOR).at(-1));
}

function servedName(user: string): string {
  return `${SERVED}${SEPARATOR}${user}`;
}

/**
 * Whether a waiter's process is alive and has refreshed the waiter's file. Removes the file if the process has ended.
 */
function waits(folder: string, name: string): boolean {
  const path = join(folder, name);
  const [, , pid, startTicks = "", bootId = ""] = name.split(SEPARATOR);
  if (isAlive({ ...ownIdentity(), pid: Number(pid), startTicks, bootId })) return Date.now() - timeOf(path) < SILENT_MS;
  remove(path);
  return false;
}

function namesIn(folder: string): string[] {
  // Most servers never had a queue, and an exception takes longer than this check.
  if (statSync(folder, { throwIfNoEntry: false }) === undefined) return [];
  return readdirSync(folder);
}

function timeOf(path: string): number {
  return statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0;
}

function touch(path: string, nowMs: number): void {
  const now = new Date(nowMs);
  try {
    utimesSync(path, now, now);
  } catch (error) {
    if (systemCode(error) !== "ENOENT") throw error;
    create(path);
  }
}

function create(path: string): void {
  try {
    writeFileSync(path, "", { mode: 0o600 });
  } catch (error) {
    if (systemCode(error) !== "ENOENT") throw error; // ENOENT: the server was deleted
  }
}

function remove(path: string): void {
  try {
    unlinkSync(path);
  } catch (error) {
    if (systemCode(error) !== "ENOENT") throw error;
  }
}

/**
 * Makes room for one more session in a server's memory. If the server already has `maxActive` sessions in memory,
 * unloads the least recently used sessions that are neither in use nor under a lease, until there is room. The caller
 * must have set the new session's use marker. So if two callers come at once, at least one of them counts both
 * sessions.
 *
 * @returns false if not enough sessions could be unloaded
 */
export async function makeRoom(
  server: ServerRecord,
  id: string,
  maxActive: number,
  context: EvictionContext,
): Promise<boolean> {
  const used = usedSessions(server).add(id);
  const idle = knownLoaded(server).filter((loaded) => !used.has(loaded));
  const excess = idle.length + used.size - maxActive;
  if (excess <= 0) return true;
  // Many callers may come at once, and a server accepts at most 128 connections (measured with runtime 1.0.85). So do
  // not connect if there cannot be enough room.
  if (idle.length < excess) return false;
  const { evicted } = await unloadOldest(server, excess, used, context);
  return evicted.length === excess;
}

function exhausted(server: ServerRecord, maxActive: number): FleetError {
  const message = `Server ${server.id} has ${countOf(maxActive, "session")} in memory (session.maxActive), and none of them is idle.`;
  return new FleetError("FLEET_LIMIT_REACHED", message, {
    suggestions: [
      "copilotfleet list --state active",
      `Wait longer with ${option("wait", "2m")}.`,
      "Raise session.maxActive.",
    ],
    limit: "session.maxActive",
  });
}
