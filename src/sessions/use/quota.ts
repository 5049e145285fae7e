import type { QuotaPart } from "../../model/usage/quota.js";
import { isRunning } from "../../pool/server.js";
import { RawConnection } from "../../runtime/client/raw-connection.js";
import { deadline } from "../../runtime/clock.js";
import { provenEndpoint } from "../../runtime/process/probe.js";
import type { SessionsContext } from "../context.js";
import { sessionToken } from "./session-token.js";

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
