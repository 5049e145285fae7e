import type { Charge, TurnAllowance } from "../../accounts/limits.js";
import { type Deadline, deadline } from "../../base/clock.js";
import type { FleetError } from "../../base/errors.js";
import type { ServerRecord } from "../../base/server.js";
import type { SessionRecord } from "../../base/session.js";
import { refuseSuspended } from "../../base/usage.js";
import { ModelUse } from "../../providers/provider.js";
import { isRunning } from "../../servers/server.js";
import { setUseMarker, type UseMarker } from "../../servers/use-markers.js";
import { abortIfSuspended } from "../delete.js";
import { isStoreTrouble, type SessionsContext, sessionBusy, unreleased } from "../problems.js";
import type { TurnLease } from "../seen.js";
import { recordFor } from "../view.js";
import { load, type Transport } from "./load.js";
import { allowanceFor, type Permit, permitFor, type UseRequest, untilAlone, WAIT_MS } from "./permit.js";
import { isEndOf, serverFor, UseCheck } from "./server.js";
import { MeteredTurn } from "./turn-records.js";

/**
 * Begins to use a session: gets the permit for a turn, finds the server, sets the use marker there, and checks that the
 * session may be used there. The command, the library and the front door open sessions and take turns only through
 * here.
 *
 * Two turns must not run in a session at once, because both would get the reply to the later prompt. A turn that finds
 * a private session unused needs no lease. A turn that finds the session in use takes the session's lease, for which it
 * waits in a queue.
 *
 * @throws FleetError `FLEET_SESSION_LOCKED`, `FLEET_SESSION_BUSY`, `FLEET_LIMIT_REACHED`,
 * `FLEET_SESSION_NOT_FOUND`, `FLEET_SESSION_MOVED`, `FLEET_POOL_DRAINING`, `FLEET_USER_SUSPENDED`; the errors of
 * `Pool.serverOf`; the signal's own reason when it aborts.
 */
export async function useSession(context: SessionsContext, request: UseRequest): Promise<SessionUse> {
  const use = new SessionUse(context, request);
  try {
    await use.begin();
    return use;
  } catch (error) {
    await use[Symbol.asyncDispose]();
    throw error;
  }
}

/** The use of a session by this process. Its disposal removes the use marker and gives the lease back. */
export class SessionUse implements AsyncDisposable {
  readonly turn: MeteredTurn;
  readonly model: ModelUse;
  readonly #context: SessionsContext;
  readonly #request: UseRequest;
  readonly #check: UseCheck;
  #record: SessionRecord;
  /** The part of the user's limits that the turn takes up. */
  #allowance: TurnAllowance | null = null;
  #permit: Permit | null = null;
  #watch: Disposable | undefined;
  #server: ServerRecord | undefined;
  #marker: UseMarker | undefined;
  /** How many calls of `reopen` are under way. The use marker stays until they end, even if the turn ends earlier. */
  #reopening = 0;
  #isOver = false;

  constructor(context: SessionsContext, request: UseRequest) {
    this.turn = new MeteredTurn(context, request);
    this.model = new ModelUse(context.provider, this.turn.consumer, request.isTurn);
    this.#context = context;
    this.#request = request;
    this.#check = new UseCheck(context, request.user);
    this.#record = request.record;
  }

  /**
   * The record, as this use read it under the use marker. If the caller has the session open and the session cannot
   * move, this is the caller's own, older record.
   */
  get record(): SessionRecord {
    return this.#record;
  }

  /** The server on which the use marker is set. A drain of that server waits for the marker. */
  get server(): ServerRecord {
    if (this.#server === undefined) throw new Error("The use of the session has not begun.");
    return this.#server;
  }

  get lease(): TurnLease | undefined {
    return this.#permit?.lease;
  }

  /**
   * Counts a prompt toward the user's limits. Call it right before the prompt is sent. Null if no limit applies.
   *
   * @throws FleetError `FLEET_LIMIT_REACHED`.
   */
  async charge(): Promise<Charge | null> {
    return (await this.#allowance?.charge()) ?? null;
  }

  /** Called once, by {@link useSession}. */
  async begin(): Promise<void> {
    const { isTurn, at, user, record } = this.#request;
    if (isTurn) {
      this.#allowance = await allowanceFor(this.#context, user);
      this.#watch = abortIfSuspended(this.#context, record.id, user);
      await this.#getPermit(false);
    } else {
      refuseSuspended(await this.#context.store.limits.read(user));
    }
    await this.#enter(at);
    const maxBytes = this.server.sandbox?.limits?.disk ?? null;
    if (isTurn && maxBytes !== null) await this.#context.pool.disk.assertRoom(this.server, maxBytes);
  }

  /**
   * Loads the session into the server's memory, and attaches to it. If the server ends before it answers, tries once
   * more on the server that takes its place. That is safe, because the first load ended with its server.
   *
   * @param options.isNew whether the session was recorded a moment ago, so that no disk can have its state
   * @param options.isOnce whether to try only once, because the caller discards the session after a failure
   */
  async open<T>(transport: Transport<T>, { isNew = false, isOnce = false } = {}): Promise<T> {
    using limit = this.#limit();
    const loadIt = async () => {
      const isAlone = this.#request.isTurn || this.#marker?.foundOthers === false;
      return await load(this.#context, this, transport, { isNew, isAlone, signal: limit.signal });
    };
    try {
      return await loadIt();
    } catch (error) {
      if (isOnce || limit.signal.aborted || !(await isEndOf(this.server, error))) throw error;
      await this.#enter(undefined);
      return await loadIt();
    }
  }

  /**
   * Loads the session again during a turn, after it was unloaded or after its server ended. If the server still runs,
   * uses it even during its drain. The drain waits for this turn, so the turn must not wait for the drain.
   */
  async reopen<T>(transport: Transport<T>): Promise<T> {
    this.#reopening++;
    try {
      await this.#readyAgain();
      return await this.open(transport);
    } finally {
      this.#reopening--;
      if (this.#isOver) await this.#release();
    }
  }

  async #readyAgain(): Promise<void> {
    const { signal } = this.#request;
    const untilMs = performance.now() + this.#waitMs;
    while (this.#marker !== undefined && isRunning(this.server)) {
      const refusal = await this.#check.room(this);
      if (refusal === null) {
        this.#record = await this.#check.recordOn(this, signal);
        return;
      }
      if (refusal === "ended") break;
      await this.#check.pauseAfter(refusal, this, { untilMs, signal });
    }
    await this.#enter(undefined);
  }

  /**
   * Ends the use and gives the lease back.
   *
   * @returns null, or the store's error if the store could not take the lease back. The lease then ends by itself.
   * @throws FleetError `FLEET_LEASE_LOST` when the lease was lost before.
   */
  async end(): Promise<FleetError | null> {
    const failure = await this.#release();
    if (failure === null || isStoreTrouble(failure)) return failure;
    throw failure;
  }

  /** Like {@link end}, but only warns if the store does not take the lease back. */
  async endOrWarn(): Promise<void> {
    const failure = await this.end();
    if (failure !== null) this.#context.warn(unreleased(this.#record.id, failure.message));
  }

  /**
   * Ends the use after a failure. Does not throw if the lease was lost, because that loss may be the cause of the
   * failure.
   */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#release();
  }

  /** @returns null, or the error if the lease could not be given back */
  async #release(): Promise<unknown> {
    this.#isOver = true;
    this.turn[Symbol.dispose]();
    this.#allowance?.end();
    this.#watch?.[Symbol.dispose]();
    this.#check[Symbol.dispose]();
    if (this.#reopening === 0) {
      this.#unmark();
      this.model[Symbol.dispose]();
    }
    const permit = this.#permit;
    this.#permit = null;
    if (permit?.owned !== true) return null;
    return await permit.lease.release().then(
      () => null,
      (error: unknown) => error,
    );
  }

  async #getPermit(always: boolean): Promise<void> {
    this.#permit = await permitFor(this.#context, this.#record, this.#request, always);
    this.#record = this.#permit?.record ?? this.#record;
  }

  /** Sets the use marker, and makes sure that a turn is alone in the session. */
  async #enter(at: ServerRecord | undefined): Promise<void> {
    const { isTurn } = this.#request;
    const held = this.#marker;
    let marker = await this.#mark(at);
    // If this use already had this marker, no other turn has begun since the marker was set, because other turns wait
    // for it.
    if (marker === held) return;
    if (isTurn && this.#permit === null && marker.foundOthers) {
      this.#unmark();
      await this.#getPermit(true);
      marker = await this.#mark(at);
    }
    if (this.#permit === null) return;
    // Wait until every other use is over: a turn that began without a lease, or another process that is loading the
    // session. No new turn begins, because this turn has the lease.
    await untilAlone(marker, this.#record.id, { ...this.#request, waitMs: this.#waitMs });
  }

  /**
   * Sets the use marker on the session's server, and checks the session there. Tries again, as the table of
   * {@link Refusal} shows, until the check passes or `waitMs` is over.
   *
   * - The first try uses `at`, the server on which the caller has the session open. Without `at`, and on each later
   *   try,
   * `serverFor` finds the server by the record. The one exception: if `at` was drained and the record still names it,
   * the
   *   next try uses `at` again.
   * - A use has at most one marker. It is kept only if it is already on the right server. It is removed during each
   *   pause,
   *   because other uses must not wait for this use while it waits itself.
   * - After a refusal at `at`, the next try follows at once, except after `draining`.
   *
   * @throws FleetError `FLEET_SESSION_BUSY` when another process's eviction marker stays for longer than `waitMs`; the
   * errors of `UseCheck.pauseAfter`.
   */
  async #mark(at: ServerRecord | undefined): Promise<UseMarker> {
    const { signal, user } = this.#request;
    const { id } = this.#record;
    const untilMs = performance.now() + this.#waitMs;
    for (let known = at; ; ) {
      const server = known ?? (await this.#chooseServer());
      // Markers outlive a launch. So a marker that was set on an earlier launch of this server still counts.
      if (this.#server?.id !== server.id) this.#unmark();
      const waitMs = untilMs - performance.now();
      const marker = this.#marker ?? (await setUseMarker(server, id, { waitMs, signal }));
      if (marker === null) throw sessionBusy(id);
      this.#marker = marker;
      this.#server = server;
      const { record, refusal } = await this.#check.check(this, { isOpen: known !== undefined, signal });
      this.#record = record;
      if (refusal === null) return marker;
      // Remove the marker, because other uses must not wait for this use while it waits itself.
      this.#unmark();
      const hurries = known !== undefined && refusal !== "draining";
      do await this.#check.pauseAfter(refusal, this, { untilMs, signal, hurries });
      while (await this.#check.mustWait(refusal, this));
      // Others may have moved the session during the pause.
      if (refusal === "draining" || refusal === "ended") this.#record = await recordFor(this.#context, id, user);
      if (refusal !== "draining" || this.#record.serverId !== server.id) known = undefined;
    }
  }

  async #chooseServer(): Promise<ServerRecord> {
    using limit = this.#limit();
    const { user, mayMove = false, sharedUntil } = this.#request;
    const lease = mayMove ? this.lease : undefined;
    return await serverFor(this.#context, this.#record, { user, lease, signal: limit.signal, sharedUntil });
  }

  get #waitMs(): number {
    return this.#request.waitMs ?? WAIT_MS;
  }

  #limit(): Deadline {
    return deadline(this.#request.openMs, this.#request.signal);
  }

  #unmark(): void {
    this.#marker?.[Symbol.dispose]();
    this.#marker = undefined;
  }
}
