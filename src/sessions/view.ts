import { pause } from "../base/clock.js";
import { FleetError, isFleetError, quote } from "../base/errors.js";
import type { HostRecord } from "../base/host.js";
import { serverIdOf } from "../base/ids.js";
import type { OwnView, ProcessIdentity, ServerRecord } from "../base/server.js";
import { type Lease, mayUse, newSessionRecord, type SessionRecord, type SessionState } from "../base/session.js";
import { ownPid, readSessionFolder, type SessionFolder, sessionBytes } from "../runtime/history/session-state.js";
import type { HostDirectory } from "../servers/directory.js";
import type { Store } from "../store/store.js";
import { isBeingDeleted } from "./gc/survey.js";
import { SessionExpired, sessionNotFound } from "./problems.js";

/** A session as `--json` and the library show it. Times are ISO 8601 in UTC. */
export interface SessionView {
  id: string;
  owner: string;
  purpose: string | null;
  /** The title that a user gave to the session, or else its first prompt; null if there is neither. */
  title: string | null;
  kind: SessionRecord["kind"];
  members: string[];
  persistence: SessionRecord["persistence"];
  serverId: string;
  /** The host that has the session, or had it last; null in a fleet on one host. */
  host: string | null;
  /**
   * Whether the session is on the disk of a host that does not serve. Nobody can use it until that host serves again.
   */
  stranded: boolean;
  state: SessionState;
  model: string | null;
  createdAt: string;
  lastUsedAt: string;
  /** How long gc keeps the session after its last use, in milliseconds; null: for ever. */
  ttlMs: number | null;
  /**
   * When gc may delete the session if nobody uses it until then. Null if that is never, or if the time is not known.
   */
  expiresAt: string | null;
  /** The size of the session's state on disk, in bytes. */
  sizeBytes: number;
  /** The lease in force, without its token. */
  lease: Lease | null;
}

interface SessionSurroundings {
  server: ServerRecord | undefined;
  /** The server's process; null if the server does not run. */
  process: ProcessIdentity | null;
  lease: Lease | null;
  /** The configured TTL, in milliseconds. It applies to a session without its own TTL. Null: for ever. */
  ttlMs: number | null;
  /** The name of this host; null in a fleet on one host. */
  own: string | null;
}

/** Builds a view from the record, the session's folder, and the server that should have the session. */
export function viewSession(
  record: SessionRecord,
  { server, process, lease, ttlMs, own }: SessionSurroundings,
): SessionView {
  const folder = server === undefined ? null : readSessionFolder(server.home, record.id);
  return {
    id: record.id,
    owner: record.owner,
    purpose: record.purpose,
    title: record.title ?? null,
    kind: record.kind,
    members: record.members,
    persistence: record.persistence,
    serverId: record.serverId,
    host: own === null ? null : (record.host ?? own),
    stranded: false,
    state: stateOf(record, folder, process),
    model: record.model,
    createdAt: record.createdAt,
    lastUsedAt: record.lastUsedAt,
    ttlMs: record.ttlMs ?? ttlMs,
    expiresAt: expiryOf(record.lastUsedAt, record.ttlMs ?? ttlMs),
    sizeBytes: server === undefined || folder === null ? 0 : sessionBytes(server.home, record.id),
    lease,
  };
}

/** The time that is `ttlMs` after the last use. */
function expiryOf(lastUsedAt: string, ttlMs: number | null): string | null {
  const at = Date.parse(lastUsedAt) + (ttlMs ?? Number.NaN);
  return Number.isNaN(at) ? null : new Date(at).toISOString();
}

function stateOf(record: SessionRecord, folder: SessionFolder | null, running: OwnView | null): SessionState {
  if (running !== null && folder?.loadedBy.includes(ownPid(running)) === true) return "active";
  return record.turns > 0 && folder?.hasHistory !== true ? "gone" : "idle";
}

/** Builds a view from the record alone, for a session on a host that cannot be asked. */
export function viewRecord(
  record: SessionRecord,
  { ttlMs, lease, stranded }: Pick<SessionView, "lease" | "stranded"> & { ttlMs: number | null },
): SessionView {
  const unseen = { server: undefined, process: null, own: record.host ?? null, lease, ttlMs };
  return { ...viewSession(record, unseen), state: "idle", stranded };
}

interface FindContext {
  store: Store;
  directory: HostDirectory;
}

/** Finds sessions that clients created on other hosts without the fleet. `hosts/` implements this. */
interface UnrecordedSessions {
  /**
   * Asks the host that has the user's unrecorded session to record it. Resolves with false if no other host has it.
   */
  record(id: string, user: string): Promise<boolean>;
  /** When gc deleted the user's session, as the audit log shows it (ISO 8601); null if it did not. */
  expiredAt(id: string, user: string): Promise<string | null>;
}

/** How many times to look for a session that is being moved, and the pause between two looks, in milliseconds. */
const TRIES = 3;
const PAUSE_MS = 300;

/** How long to wait for a record that gc may restore, and the pause between two looks, in milliseconds. */
const PUT_BACK_MS = 5_000;
const PUT_BACK_POLL_MS = 10;

/** Finds sessions by their ids, on all hosts. */
export class SessionFinder {
  readonly #context: FindContext;
  readonly #elsewhere: UnrecordedSessions;

  constructor(context: FindContext, elsewhere: UnrecordedSessions) {
    this.#context = context;
    this.#elsewhere = elsewhere;
  }

  /**
   * The session's record, if the user may use the session. If a client of the user created the session without the
   * fleet, on any host, records it first.
   *
   * @throws FleetError `FLEET_SESSION_NOT_FOUND`; the error of another host if the fleet cannot reach that host.
   */
  async find(id: string, user: string): Promise<SessionRecord> {
    try {
      return await recordFor(this.#context, id, user);
    } catch (error) {
      const isMissing = isFleetError(error, "FLEET_SESSION_NOT_FOUND");
      const isUnrecorded = isMissing && (await this.#context.store.sessions.read(id)) === null;
      if (!isUnrecorded) throw error;
      if (await this.#elsewhere.record(id, user)) return await recordFor(this.#context, id, user);
      const expiredAt = await this.#elsewhere.expiredAt(id, user);
      throw expiredAt === null ? error : new SessionExpired(expiredAt);
    }
  }

  /**
   * Calls `work` with the session's record and host. The host is null for this host. If the session has just moved,
   * finds it again and repeats `work`.
   *
   * @throws whatever `work` throws; FleetError `FLEET_SESSION_NOT_FOUND`, `FLEET_HOST_AWAY`.
   */
  async whereItIs<T>(
    id: string,
    user: string,
    work: (record: SessionRecord, host: HostRecord | null) => Promise<T>,
  ): Promise<T> {
    for (let tries = 1; ; tries++) {
      const record = await this.find(id, user);
      try {
        const where = await this.#context.directory.whereIs(record);
        return await work(record, where.here ? null : where.host);
      } catch (error) {
        if (!isFleetError(error, "FLEET_SESSION_MOVED") || tries === TRIES) throw error;
        await pause(PAUSE_MS, undefined);
      }
    }
  }
}

/**
 * The session's record, if the user may use the session. If the session is on the user's own server on this host and
 * has no record, records it.
 *
 * @throws FleetError `FLEET_SESSION_NOT_FOUND` when the session does not exist or the user may not use it;
 * `FLEET_STATE_BUSY` when a gc takes too long to decide about the session.
 */
export async function recordFor(context: FindContext, id: string, user: string): Promise<SessionRecord> {
  const { store, directory } = context;
  let record = await store.sessions.read(id);
  const server = record === null ? (await store.registry.read()).servers[serverIdOf(user)] : undefined;
  if (server !== undefined) {
    await directory.assertStorage();
    record = await restoredRecord(store, server, id);
  }
  if (record !== null) {
    if (mayUse(record, user)) return record;
    throw sessionNotFound(id);
  }
  if (server === undefined || readSessionFolder(server.home, id) === null) throw sessionNotFound(id);
  const found = { ...foundRecord(server, id), ...(await directory.ownership()) };
  try {
    await store.sessions.create(found);
    return found;
  } catch (error) {
    if (isFleetError(error, "FLEET_SESSION_EXISTS")) return await recordFor(context, id, user); // another call was first
    throw error;
  }
}

/**
 * The current record of a session for which the caller has set a use marker. gc deletes a record before it looks for
 * markers, and restores the record if it finds a marker. So if the record is missing but the session's folder exists,
 * waits up to 5 s for the record. Null if the record is still missing then, or if there is no folder.
 *
 * @throws the signal's own reason when it aborts.
 */
export async function markedRecord(
  store: Store,
  { home }: Pick<ServerRecord, "home">,
  id: string,
  signal: AbortSignal | undefined,
): Promise<SessionRecord | null> {
  for (const until = performance.now() + PUT_BACK_MS; ; await pause(PUT_BACK_POLL_MS, signal)) {
    const record = await store.sessions.read(id);
    if (record !== null || readSessionFolder(home, id) === null || performance.now() > until) return record;
  }
}

/**
 * The record of a session in the home of its user's own server, or null if there is none. If gc has just deleted the
 * record, waits until gc restores it or deletes the session. The fleet must not record the session again before that:
 * if gc then deleted the folder, the session would start over with an empty history.
 *
 * @throws FleetError `FLEET_STATE_BUSY` when gc takes longer than 5 s to decide.
 */
export async function restoredRecord(
  store: Store,
  { home }: Pick<ServerRecord, "home">,
  id: string,
): Promise<SessionRecord | null> {
  for (const until = performance.now() + PUT_BACK_MS; ; await pause(PUT_BACK_POLL_MS, undefined)) {
    const isDecided = !isBeingDeleted(home, id);
    // First check for gc, then read the record: gc restores a record before it stops working on the session. So if no
    // gc is working on the session and the record is still missing, nobody will restore it.
    const record = await store.sessions.read(id);
    if (record !== null || isDecided) return record;
    if (performance.now() > until) throw gcUndecided(id);
  }
}

function gcUndecided(id: string): FleetError {
  return new FleetError("FLEET_STATE_BUSY", `gc is about to delete session ${quote(id)}, and has not decided.`, {
    suggestions: ["Try again in a moment.", "copilotfleet list"],
  });
}

/**
 * The record for a session that a client created on a user's own server without the fleet. That user owns the session.
 */
export function foundRecord(server: ServerRecord, id: string): SessionRecord {
  const folder = readSessionFolder(server.home, id);
  return {
    ...newSessionRecord({ id, owner: server.user ?? "" }, { serverId: server.id }),
    createdAt: (folder?.createdAt ?? new Date()).toISOString(),
    lastUsedAt: (folder?.modifiedAt ?? new Date()).toISOString(),
  };
}
