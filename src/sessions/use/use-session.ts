import { isFleetError } from "../../errors.js";
import { sessionMoved } from "../../hosts/problems.js";
import type { ServerRecord } from "../../model/server.js";
import { mayUse, type SessionRecord } from "../../model/session.js";
import { admits, closedBy, poolDraining } from "../../pool/admission.js";
import { hasEnded, isRunning } from "../../pool/server.js";
import { setUseMarker, type UseMarker } from "../../pool/use-markers.js";
import { type Deadline, deadline, isTimeout, pause } from "../../runtime/deadline.js";
import type { SessionsContext } from "../context.js";
import { markedRecord, recordFor } from "../find.js";
import type { TurnLease } from "../leases/seen.js";
import { exhausted, makeRoom } from "../memory/eviction.js";
import { isStoreTrouble, serverDraining, sessionBusy, sessionNotFound, unreleased } from "../problems.js";
import { load, type Transport } from "./load.js";
import { type Permit, type PermitRequest, permitFor, WAIT_MS } from "./permit.js";
import { serverFor } from "./server.js";

export interface UseRequest extends PermitRequest {
  /** The session's record, of which the caller has checked that the user may use the session. */
  record: SessionRecord;
  /** Whether the use takes a turn, which nobody else may do at the same time. Otherwise it only opens the session. */
  isTurn: boolean;
  /** The server on which the caller has the session open. It is used if it still takes turns and has the session. */
  at?: ServerRecord | undefined;
  /** Whether the holder of the lease opens a session on shared servers where the user is placed. */
  mayMove?: boolean;
  /** How long the server may take to start, and how long to open the session, in milliseconds. Default: no limit. */
  openMs?: number;
}

/** How often to look whether others are done, in milliseconds. */
const SHARED_POLL_MS = 5;
const DRAIN_POLL_MS = 20;
const ROOM_POLL_MS = 50;

/**
 * Begins to use a session: gets the permit, the server, the use marker and admission. The command and the library open
 * sessions and take turns only through here. The front door has its own way (`turn-taking.ts`, `routing/opener.ts`). If two
 * turns ran at once, both would take the later one's answer. So a turn that finds a private session unused needs no lease.
 * A turn that finds it in use takes the lease, and so queues.
 *
 * @throws FleetError `FLEET_SESSION_LOCKED`, `FLEET_SESSION_BUSY`, `FLEET_SESSIONS_EXHAUSTED`, `FLEET_SESSION_NOT_FOUND`,
 * `FLEET_SESSION_MOVED`, `FLEET_SERVER_DRAINING`, `FLEET_POOL_DRAINING`; as `Pool.serverOf`; the signal's own reason when it
 * aborts.
 */
export async function useSession(context: SessionsContext, request: UseRequest): Promise<SessionUse> {
  // A session object may outlive its fleet. Do not start anything for it then.
  context.clients.assertOpen();
  const use = new SessionUse(context, request);
  try {
    await use.begin();
    return use;
  } catch (error) {
    await use[Symbol.asyncDispose]();
    throw error;
  }
}

/** The use of a session by this process, from its use marker on. Disposing it lets the others go on. */
export class SessionUse implements AsyncDisposable {
  readonly #context: SessionsContext;
  readonly #request: UseRequest;
  #record: SessionRecord;
  #permit: Permit | null = null;
  #marked: { server: ServerRecord; marker: UseMarker } | undefined;

  constructor(context: SessionsContext, request: UseRequest) {
    this.#context = context;
    this.#request = request;
    this.#record = request.record;
  }

  /** The session's record. It was read under the use marker, unless the session was open on a server where it stays. */
  get record(): SessionRecord {
    return this.#record;
  }

  /** The server on which the use marker is set. A drain of that server waits for it. */
  get server(): ServerRecord {
    if (this.#marked === undefined) throw new Error("The use of the session has ended.");
    return this.#marked.server;
  }

  /** The lease that covers the turn. */
  get lease(): TurnLease | undefined {
    return this.#permit?.lease;
  }

  async begin(): Promise<void> {
    const { isTurn, at } = this.#request;
    if (isTurn) await this.#getPermit(false);
    await this.#enter(at);
  }

  /**
   * Loads the session into the server's memory, and attaches to it. If the server ends before it answers, it has not done
   * anything. This then tries once more, with the server that replaces it.
   *
   * @param isNew whether the session was recorded a moment ago, and so cannot be on a disk
   */
  async open<T>(transport: Transport<T>, isNew = false): Promise<T> {
    using limit = this.#limit();
    try {
      return await load(this.#context, this, transport, { isNew, signal: limit.signal });
    } catch (error) {
      if (limit.signal.aborted || !(await isEndOf(this.server, error))) throw error;
      await this.#enter(undefined);
      return await load(this.#context, this, transport, { isNew, signal: limit.signal });
    }
  }

  /**
   * Loads the session again during a turn, after it was unloaded or after its server ended. While the server runs, this uses
   * it even if it is draining: the drain waits for this turn, so this turn must not wait for the drain.
   */
  async reopen<T>(transport: Transport<T>): Promise<T> {
    await this.#readyAgain();
    return await this.open(transport);
  }

  async #readyAgain(): Promise<void> {
    const until = performance.now() + this.#waitMs;
    const { server } = this;
    while (isRunning(server)) {
      const refusal = await this.#roomRefusal(server);
      // Its user may have deleted the session since the use began, and another user may have its id now.
      if (refusal === null) return await this.#readUnderMarker(server);
      if (refusal === "draining") break;
      await this.#pauseAfter(refusal, server, until);
    }
    await this.#enter(undefined);
  }

  /**
   * Ends the use and gives the lease back. If the store does not take the lease back, only warns: the lease then ends by
   * itself.
   *
   * @throws FleetError `FLEET_LEASE_LOST` when the lease was lost before.
   */
  async end(): Promise<void> {
    const failure = await this.#release();
    if (failure === undefined) return;
    if (!isStoreTrouble(failure)) throw failure;
    this.#context.warn(unreleased(this.#record.id, failure.message));
  }

  /** As {@link end} after a failure, which is more specific than the loss of the lease that it may have caused. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.end().catch(() => "lost");
  }

  /** @returns the failure to give the lease back. */
  async #release(): Promise<unknown> {
    this.#unmark();
    const permit = this.#permit;
    this.#permit = null;
    if (permit?.owned !== true) return undefined;
    return await permit.lease.release().catch((error: unknown) => error);
  }

  async #getPermit(always: boolean): Promise<void> {
    this.#permit = await permitFor(this.#context, this.#record, this.#request, always);
    this.#record = this.#permit?.record ?? this.#record;
  }

  /** Sets the use marker, and makes sure that a turn is alone in the session. */
  async #enter(at: ServerRecord | undefined): Promise<void> {
    const { isTurn } = this.#request;
    let marker = await this.#mark(at);
    if (isTurn && this.#permit === null && marker.isShared()) {
      this.#unmark();
      await this.#getPermit(true);
      marker = await this.#mark(at);
    }
    if (this.#permit === null) return;
    // Wait for an earlier turn without a lease, or for a load. No other turn begins, because this one has the lease.
    const until = performance.now() + this.#waitMs;
    while (marker.isShared()) {
      if (performance.now() > until) throw sessionBusy(this.#record.id);
      await pause(SHARED_POLL_MS, this.#request.signal);
    }
  }

  /**
   * Sets the use marker on the session's server. If that server is being drained, tries again with its successor. If the
   * session was moved to another server, continues with that one.
   */
  async #mark(known: ServerRecord | undefined): Promise<UseMarker> {
    const { signal, user } = this.#request;
    const { id } = this.#record;
    const until = performance.now() + this.#waitMs;
    for (let at = known; ; at = undefined) {
      const server = at ?? (await this.#chooseServer());
      // A server that was started again has the markers of the launch before it, so a marker there still counts.
      if (this.#marked?.server.id !== server.id) this.#unmark();
      const waitMs = until - performance.now();
      const marker = this.#marked?.marker ?? (await setUseMarker(server, id, { waitMs, signal }));
      if (marker === null) throw sessionBusy(id);
      this.#marked = { server, marker };
      const refusal = await this.#refusal(server, at !== undefined);
      if (refusal === null) return marker;
      // While this use waits, it must not count as one that others have to wait for.
      this.#unmark();
      await this.#pauseAfter(refusal, server, until, at === undefined ? undefined : 0);
      // Others may have moved the session while its server was being drained.
      if (refusal === "draining") this.#record = await recordFor(this.#context, id, user);
    }
  }

  async #chooseServer(): Promise<ServerRecord> {
    using limit = this.#limit();
    const { user, mayMove = false } = this.#request;
    const lease = mayMove ? this.lease : undefined;
    return await serverFor(this.#context, this.#record, { user, lease, signal: limit.signal });
  }

  /**
   * Why the session cannot be used on this server, or null. Everything here is checked under the use marker. A drain is
   * recorded first and then looks for use markers. A move of the session, a release and gc set their eviction marker, or
   * change the record, first, and then look for them. So either this notices the other process, or the other process notices
   * the use marker.
   */
  async #refusal(server: ServerRecord, isOpen: boolean): Promise<Refusal | null> {
    const { store, directory } = this.#context;
    const registry = await store.registry.read();
    const by = closedBy(registry);
    if (by !== null) throw poolDraining(by);
    if (!admits(registry, server)) return "draining";
    if (!isOpen) await this.#readUnderMarker(server);
    else {
      // Sessions never move away from a user's own server, and without shared storage they cannot change hosts.
      if (server.isolation === "per-user" && !directory.isShared) return null;
      if (directory.isShared) await directory.assertStorage();
      const now = await store.sessions.read(this.#record.id);
      if (now === null) return null; // it was deleted, so its server refuses the turn
      this.#record = now;
    }
    if (this.#record.serverId !== server.id || !(await directory.has(this.#record))) return "moved";
    return isOpen ? null : await this.#roomRefusal(server);
  }

  async #roomRefusal(server: ServerRecord): Promise<Refusal | null> {
    const { store, config } = this.#context;
    const eviction = { store, answerMs: config.health.timeoutMs };
    try {
      return (await makeRoom(server, this.#record.id, config.session.maxActive, eviction)) ? null : "full";
    } catch (error) {
      if (await isEndOf(server, error)) return "draining";
      throw error;
    }
  }

  /**
   * Reads the record again on purpose, now that the use marker is set: gc deletes the record first and then looks for
   * markers, and the session may have moved since the caller read its record.
   */
  async #readUnderMarker(server: ServerRecord): Promise<void> {
    const { id } = this.#record;
    using limit = this.#limit();
    const record = await markedRecord(this.#context.store, server, id, limit.signal);
    if (record === null || !mayUse(record, this.#request.user)) throw sessionNotFound(id);
    this.#record = record;
  }

  /** Waits before the next try. @throws the error for this refusal when it is too late; the signal's reason. */
  async #pauseAfter(refusal: Refusal, server: ServerRecord, until: number, ms = pauseMs(refusal)): Promise<void> {
    const { signal } = this.#request;
    const isLate = performance.now() > until || (signal?.aborted === true && isTimeout(signal.reason));
    if (isLate && refusal === "full") throw exhausted(server, this.#context.config.session.maxActive);
    if (isLate) throw refusal === "draining" ? serverDraining(server.id) : sessionMoved(this.#record, null);
    signal?.throwIfAborted();
    await pause(ms, undefined);
  }

  get #waitMs(): number {
    return this.#request.waitMs ?? WAIT_MS;
  }

  #limit(): Deadline {
    return deadline(this.#request.openMs, this.#request.signal);
  }

  #unmark(): void {
    this.#marked?.marker[Symbol.dispose]();
    this.#marked = undefined;
  }
}

/** Whether an error shows that the server has ended. */
async function isEndOf(server: ServerRecord, error: unknown): Promise<boolean> {
  const isLost = isFleetError(error, "FLEET_SERVER_LOST") || isFleetError(error, "FLEET_SERVER_UNREACHABLE");
  return isLost && (await hasEnded(server));
}

type Refusal = "full" | "draining" | "moved";

function pauseMs(refusal: Refusal): number {
  return refusal === "full" ? ROOM_POLL_MS * (0.5 + Math.random()) : DRAIN_POLL_MS;
}
