import { audited } from "../../events/audited.js";
import type { Lease } from "../../model/lease.js";
import { refuseSuspended } from "../../model/usage/user-limits.js";
import { unknownOf } from "../../peers/gather.js";
import type { AcquireOptions, HeldLease } from "../../sessions/leases/leases.js";
import { acquireOptions, type LockOptions } from "../../sessions/leases/options.js";
import { sessionsNotFound } from "../../sessions/problems.js";
import * as arg from "../arguments.js";
import { Group } from "./group.js";

/** The leases on sessions. A lease is a time-bounded right to use one session. */
export class LeaseGroup extends Group {
  /**
   * Runs `work` under the lease on a session. Renews the lease while `work` runs, and releases it at the end. If `work`
   * starts turns for the same user in that session (`sessions.use`, `sessions.send`), these turns use this lease,
   * unless their options name another lease. Before any other step that must not run without the lease, call
   * `await lease.check()`.
   *
   * @throws the error of `work`; FleetError `FLEET_SESSION_LOCKED` when the lease is not available in time,
   * `FLEET_SESSION_NOT_FOUND` when the user is neither owner nor member; `FLEET_LEASE_LOST` when the lease was lost
   * while `work` ran, even if `work` succeeded.
   */
  async hold<T>(sessionId: string, options: LockOptions, work: (lease: HeldLease) => Promise<T>): Promise<T> {
    const { leases } = this.parts;
    if (options.steal === undefined) return await leases.hold(this.#acquireOptions(sessionId, options), work);
    return await leases.under(await this.acquire(sessionId, options), work);
  }

  /**
   * Acquires the lease on a session. The lease is renewed until it is released or detached. @throws like {@link hold}.
   */
  async acquire(sessionId: string, options: LockOptions): Promise<HeldLease> {
    const { store, events, finder, leases } = this.parts;
    const wanted = this.#acquireOptions(sessionId, options);
    const { user, steal } = options;
    if (steal === undefined) return await leases.acquire(wanted);
    const { owner } = await finder.find(sessionId, user);
    const held = await store.leases.read(sessionId);
    const detail = `${held === null ? "" : `from ${held.holder}: `}${steal.reason}`;
    const stolen = { type: "session.stolen", actor: { user }, user: owner, sessionId, detail } as const;
    return await audited(events, stolen, async () => await leases.acquire(wanted));
  }

  /**
   * Releases the lease that has this token.
   *
   * @throws FleetError `FLEET_LEASE_LOST` when the token is wrong or its lease has ended.
   */
  async release(sessionId: string, options: { token: string }): Promise<void> {
    await this.parts.store.leases.release(sessionId, options.token);
  }

  /**
   * Returns the current lease on a session; null if there is none.
   *
   * @throws FleetError `FLEET_SESSION_NOT_FOUND` when the session does not exist, or `user` may not use it.
   */
  async get(sessionId: string, options: { user?: string | undefined } = {}): Promise<Lease | null> {
    const { user } = options;
    if (user !== undefined) await this.parts.finder.find(sessionId, user);
    const lease = await this.parts.store.leases.read(sessionId);
    if (lease === null && user === undefined && (await unknownOf(this.parts, [sessionId])).length > 0)
      throw sessionsNotFound([sessionId]);
    return lease;
  }

  #acquireOptions(sessionId: string, options: LockOptions): AcquireOptions {
    const acquire = acquireOptions(sessionId, options, this.parts.config);
    const { store, finder } = this.parts;
    const mayUse = async () => {
      refuseSuspended(await store.limits.read(acquire.holder));
      return await finder.find(acquire.sessionId, acquire.holder);
    };
    return { ...acquire, mayUse };
  }

  static {
    const id = ["sessionId", arg.sessionId] as const;
    const lock = arg.options({
      ...arg.OWN_USER,
      ttl: { check: arg.span },
      wait: { check: arg.span },
      steal: { check: arg.options({ reason: arg.required(arg.text) }) },
      detached: { check: arg.flag },
      onWait: { check: arg.callback },
      ...arg.SIGNAL,
    });
    Group.guard(LeaseGroup.prototype, {
      hold: [id, ["options", lock], ["work", arg.callback]],
      acquire: [id, ["options", lock]],
      release: [id, ["options", arg.options({ token: arg.required(arg.text) })]],
      get: [id, arg.optional(arg.USER)],
    });
  }
}
