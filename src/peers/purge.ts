import type { Purged, Remain } from "../data/purge/purge.js";
import { listTokens, revokeTokens } from "../identity/tokens.js";
import type { SessionsContext } from "../sessions/context.js";
import type { FleetHosts, Missing } from "./fleet-hosts.js";

export interface PurgeReceipt {
  user: string;
  /** How many sessions of the user were erased, on all hosts. */
  sessions: number;
  servers: number;
  tokens: number;
  bytes: number;
  /** The parts that the purge could not erase. Empty if nothing of the user is left in the fleet. */
  remains: Remain[];
  /** Whether this only shows what would be erased. */
  dryRun: boolean;
}

interface PurgeRequest {
  dryRun: boolean;
  signal: AbortSignal;
}

type Context = Pick<SessionsContext, "store"> & { hosts: FleetHosts };

/**
 * Erases all data of a user on all hosts. First records that this is under way, so that nothing new of the user begins, and so that
 * the next purge, gc or `serve` of each host finishes it if this process is killed or a host is away.
 */
export async function purgeUser(context: Context, user: string, request: PurgeRequest): Promise<PurgeReceipt> {
  const { store, hosts } = context;
  const { dryRun, signal } = request;
  const tokens = (await listTokens(store, user)).length;
  if (!dryRun) {
    const names = await hosts.names();
    await store.purges.begin({ user, begunAt: new Date().toISOString(), pending: names.length === 0 ? [null] : names });
    await revokeTokens(store, { user }, async (ends) => await hosts.tellTokenEnds(ends));
  }
  const { answers, missing } = await hosts.everywhere(async (host) => await host.purge({ user, dryRun }, { signal }));
  const total = sum(answers.map(({ answer }) => answer));
  const pending = dryRun ? missing.map(({ host }) => host) : ((await store.purges.read(user))?.pending ?? []);
  return {
    user,
    ...total,
    tokens,
    remains: [...total.remains, ...(await away(context, user, pending, missing))],
    dryRun,
  };
}

function sum(parts: readonly Purged[]): Purged {
  const total: Purged = { sessions: 0, servers: 0, tokens: 0, bytes: 0, remains: [] };
  for (const part of parts) {
    total.sessions += part.sessions;
    total.servers += part.servers;
    total.bytes += part.bytes;
    total.remains.push(...part.remains);
  }
  return total;
}

/** The hosts that have not erased their part. */
async function away(
  { store, hosts }: Context,
  user: string,
  pending: readonly (string | null)[],
  missing: readonly Missing[],
): Promise<Remain[]> {
  const records = await store.sessions.list(() => undefined);
  return await Promise.all(
    pending.map(async (host) => {
      const sessions = records.filter((record) => record.owner === user && record.host === (host ?? undefined)).length;
      const { servers } = host === null ? { servers: {} } : await hosts.registryOf(host);
      const count = Object.values(servers).filter((server) => server.user === user).length;
      const error = missing.find((each) => each.host === host);
      const why =
        error === undefined || error.isGone ? "The host is away." : `The host did not erase it: ${error.error.message}`;
      return {
        host,
        what: `the files of the user on that host (sessions recorded there: ${sessions}, servers: ${count})`,
        why: `${why} It erases them when serve or gc runs there.`,
      };
    }),
  );
}
