import type { TurnAllowance } from "../../accounts/limits.js";
import { deadline, pause } from "../../base/clock.js";
import type { ServerRecord } from "../../base/server.js";
import type { SessionRecord } from "../../base/session.js";
import { type QuotaPart, refuseSuspended } from "../../base/usage.js";
import type { Config } from "../../config/schema.js";
import { RawConnection } from "../../runtime/client/raw-connection.js";
import { provenEndpoint } from "../../runtime/process/probe.js";
import { isRunning } from "../../servers/server.js";
import type { SpawnOptions } from "../../servers/start.js";
import type { UseMarker } from "../../servers/use-markers.js";
import type { Store } from "../../store/store.js";
import { type LeaseWait, NOTICE_MS } from "../leases.js";
import { type SessionsContext, sessionBusy } from "../problems.js";
import type { TurnLease } from "../seen.js";
import { recordFor } from "../view.js";
import { sessionToken } from "./session-token.js";

/** The user of a turn, and how to get the lease for the turn. */
export interface PermitRequest {
  user: string;
  /** The caller's lease on the session, if the caller already holds one. The turn then runs under it. */
  lease?: TurnLease | undefined;
  /**
   * The fence of a lease that a process on another host holds. The turn then runs under that lease. The other host has
   * already checked the lease's token.
   */
  fence?: number | undefined;
  /**
   * How long to wait for other turns and leases, in milliseconds. Default: 30 seconds, but fails at once if the same
   * user has locked the session for longer than that with `copilotfleet lock`.
   */
  waitMs?: number | undefined;
  /**
   * Called if the wait takes longer than a second, and again when the lease or the number of earlier waiters changes.
   */
  onWait?: ((wait: LeaseWait) => void) | undefined;
  signal?: AbortSignal | undefined;
  /** The id of the token that the client presented, for the ledger. */
  tokenId?: string | undefined;
}

export interface UseRequest extends PermitRequest, Pick<SpawnOptions, "sharedUntil"> {
  /** The session's record. The caller has checked that the user may use the session. */
  record: SessionRecord;
  /** Whether the use takes a turn. Otherwise it only opens the session, which others may do at the same time. */
  isTurn: boolean;
  /**
   * The server on which the caller has the session open. The use stays on this server if the server still takes turns
   * and has the session.
   */
  at?: ServerRecord | undefined;
  /** Whether the holder of the lease may move the session to the shared server of the user's placement. */
  mayMove?: boolean;
  /** How long the server may take to start, and then to open the session, in milliseconds each. Default: no limit. */
  openMs?: number;
}

/** The lease under which a turn runs. */
export interface Permit {
  lease: TurnLease;
  /** Whether the lease was taken for this turn, and must be released after it. */
  owned: boolean;
  /** The session's record, read again if the turn had to wait for the lease. */
  record: SessionRecord;
}

export const WAIT_MS = 30_000;

/** Gets the permit for a turn. Returns null if the turn needs no lease. With `always`, the turn always needs one. */
export async function permitFor(
  context: SessionsContext,
  record: SessionRecord,
  request: PermitRequest,
  always: boolean,
): Promise<Permit | null> {
  const { leases, store } = context;
  const { id } = record;
  const { user, lease, fence, waitMs = WAIT_MS, signal } = request;
  if (fence !== undefined) return { lease: await leases.see(id, fence, user), owned: true, record };
  if (lease !== undefined) return { lease, owned: false, record };
  const ambient = await leases.ambient.turn(id, user, { waitMs, signal });
  if (ambient !== null) return { lease: ambient, owned: true, record };
  // Without `always`, a turn in a private session needs a lease only if somebody has leased the session.
  const isFree = record.kind === "private" && !always && (await store.leases.read(id)) === null;
  return isFree ? null : await takeLease(context, record, request);
}

/**
 * Gets a permit like {@link permitFor}, but always with a lease. The disposal gives back a lease that was taken here.
 */
export async function heldPermit(
  context: SessionsContext,
  record: SessionRecord,
  request: PermitRequest,
): Promise<Permit & AsyncDisposable> {
  const permit = (await permitFor(context, record, request, true)) ?? (await takeLease(context, record, request));
  return {
    ...permit,
    [Symbol.asyncDispose]: async () => {
      // If the lease cannot be given back, it ends by itself.
      if (permit.owned) await permit.lease.release().catch(() => "it expires");
    },
  };
}

/** Takes the lease for a turn, or continues under the lease that an outer `lock SESSION -- COMMAND` took. */
async function takeLease(
  context: SessionsContext,
  known: SessionRecord,
  { user, waitMs, onWait, signal }: PermitRequest,
): Promise<Permit> {
  const { leases, store, config, env } = context;
  const { id } = known;
  let record: SessionRecord | undefined;
  const request = {
    sessionId: id,
    holder: user,
    mayUse: async () => {
      // `acquire` calls this before its wait, when the record is still fresh, and again after it. During the wait,
      // others may delete or move the session.
      record = record === undefined ? known : await recordFor(context, id, user);
    },
    ttlMs: turnLeaseMs(config, store),
    waitMs: waitMs ?? WAIT_MS,
    // Wait for the user's own `copilotfleet lock` only if the caller sets a wait. Such a caller may know that another
    // process will release the lease.
    refuseOwn: waitMs === undefined,
    ...(onWait === undefined ? {} : { onWait }),
    ...(signal === undefined ? {} : { signal }),
  };
  const lease = await leases.enter(request, env);
  return { lease, owned: true, record: record ?? known };
}

/**
 * The TTL of the lease for one turn, in milliseconds. In a fleet on several hosts, it is at most the time after which a
 * silent host counts as gone. So the lease of a dead host has expired before another host takes over its session.
 */
function turnLeaseMs({ lock, host }: Config, { hosts }: Store): number {
  return hosts === null ? lock.ttlMs : Math.min(lock.ttlMs, host.ttlMs);
}

const SHARED_POLL_MS = 5;

/** Waits until the session has no other use marker. @throws FleetError `FLEET_SESSION_BUSY` after `waitMs` */
export async function untilAlone(
  marker: UseMarker,
  sessionId: string,
  { signal, onWait, waitMs }: Pick<PermitRequest, "signal" | "onWait"> & { waitMs: number },
): Promise<void> {
  const begun = performance.now();
  let isNoticed = false;
  while (marker.isShared()) {
    const waited = performance.now() - begun;
    if (waited > waitMs) throw sessionBusy(sessionId);
    if (waited > NOTICE_MS && !isNoticed) {
      onWait?.({ sessionId, lease: null, ahead: 0 });
      isNoticed = true;
    }
    await pause(SHARED_POLL_MS, signal);
  }
}

let allowances: Promise<typeof import("../../accounts/limits.js")> | undefined;

/**
 * Reserves a turn within the limits of a user. Null if no limit applies. In that case, it costs only one read of the
 * user's own limits.
 *
 * @throws FleetError `FLEET_USER_SUSPENDED`; the errors of `TurnAllowance.take`
 */
export async function allowanceFor(context: SessionsContext, user: string): Promise<TurnAllowance | null> {
  const { store, config } = context;
  const { turnsPerMinute, concurrentTurns, tokensPerDay, tokensPerMonth } = config.limits.default;
  const record = await store.limits.read(user);
  refuseSuspended(record);
  const isFree = [turnsPerMinute, concurrentTurns, tokensPerDay, tokensPerMonth].every((max) => max === null);
  if (record === null && isFree) return null;
  // Keep the promise. Every turn of a user with limits needs it, and an `import` takes time even for a loaded module.
  allowances ??= import("../../accounts/limits.js").catch((error: unknown) => {
    allowances = undefined; // the next turn tries again
    throw error;
  });
  const { TurnAllowance: Loaded } = await allowances;
  return await Loaded.take(context, user, record);
}

/**
 * Asks GitHub for the Copilot quota of a user, through a server of this host on which the user's sessions run. Null if
 * no such server runs, if the user has no GitHub token, or if a model provider is configured. Starts nothing.
 *
 * @throws FleetError `FLEET_SERVER_UNREACHABLE`; the errors of `sessionToken`; the runtime's error when GitHub refuses.
 */
export async function quotaOf(
  context: Pick<SessionsContext, "config" | "env" | "pool" | "store">,
  user: string,
  signal: AbortSignal,
): Promise<QuotaPart[] | null> {
  const { config, pool, store } = context;
  if (config.provider !== null) return null;
  const { servers } = await store.registry.read();
  const server = Object.values(servers).find((each) => isRunning(each) && (each.user ?? user) === user);
  if (server === undefined) return null;
  const gitHubToken = await sessionToken(context, { record: { owner: user }, server }, signal);
  const hasToken = gitHubToken !== null || (server.isolation === "per-user" && pool.tokenSourceOf(server) !== null);
  if (!hasToken) return null;
  using limit = deadline(config.health.timeoutMs, signal);
  await using connection = await RawConnection.open(provenEndpoint(server), limit.signal);
  const answer = await connection.request(
    "account.getQuota",
    gitHubToken === null ? {} : { gitHubToken },
    limit.signal,
  );
  return partsIn(answer);
}

/** The fields of the SDK's `AccountQuotaSnapshot` (1.0.14) that the fleet shows. */
interface Snapshot {
  isUnlimitedEntitlement?: unknown;
  entitlementRequests?: unknown;
  usedRequests?: unknown;
  overage?: unknown;
  resetDate?: unknown;
}

function partsIn(answer: unknown): QuotaPart[] {
  const { quotaSnapshots } = (answer ?? {}) as { quotaSnapshots?: Record<string, Snapshot | null> | null };
  return Object.entries(quotaSnapshots ?? {}).flatMap(([kind, snapshot]) => {
    const { isUnlimitedEntitlement, entitlementRequests, usedRequests, overage = 0, resetDate } = snapshot ?? {};
    if (typeof usedRequests !== "number" || typeof overage !== "number") return [];
    const isLimited = isUnlimitedEntitlement !== true && typeof entitlementRequests === "number";
    return [
      {
        kind,
        used: usedRequests,
        included: isLimited && entitlementRequests >= 0 ? entitlementRequests : null,
        overage,
        resetsAt: typeof resetDate === "string" ? resetDate : null,
      },
    ];
  });
}
