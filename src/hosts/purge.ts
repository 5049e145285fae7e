import type { Purge } from "../base/host.js";
import type { SessionRecord } from "../base/session.js";
import { listTokens, revokeTokens } from "../identity/tokens.js";
import type { SessionsContext } from "../sessions/problems.js";
import type { Purged, Remain } from "../sessions/purge.js";
import { gatherEvents } from "./all-events.js";
import type { FleetHosts, Missing } from "./fleet-hosts.js";
import { unknownUser } from "./gather.js";

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
  /** Whether a user of whom the fleet knows nothing is not an error. */
  ignoreNotFound: boolean;
  signal: AbortSignal;
}

type Context = Pick<SessionsContext, "store" | "config" | "directory" | "warn"> & { hosts: FleetHosts };

/**
 * Erases all data of a user on all hosts. First records that the purge is under way. From then on, the user cannot
 * begin anything new. If this process is killed or a host is away, the next purge, gc or `serve` on each host finishes
 * the purge there.
 *
 * @throws FleetError `FLEET_NAME_NOT_FOUND`
 */
export async function purgeUser(context: Context, user: string, request: PurgeRequest): Promise<PurgeReceipt> {
  const { store, hosts } = context;
  const { dryRun, signal } = request;
  const names = await hosts.names();
  if (!request.ignoreNotFound && !(await isKnown(context, user, signal))) throw await unknownUser(context, user);
  const tokens = (await listTokens(store, user)).length;
  if (!dryRun) {
    const pending = names.length === 0 ? [null] : names;
    const sessions = (await recordsOf(context, user)).map(({ id }) => id);
    await store.purges.begin({ user, begunAt: new Date().toISOString(), pending, sessions });
    await revokeTokens(store, { user }, async (ends) => await hosts.tellTokenEnds(ends));
  }
  const { answers, missing } = await hosts.everywhere(async (host) => await host.purge({ user, dryRun }, { signal }));
  const total = sum(answers.map(({ answer }) => answer));
  const pending = dryRun ? missing.map(({ host }) => host) : ((await store.purges.read(user))?.pending ?? []);
  const remains = await away(context, user, { pending, missing, dryRun });
  return { user, ...total, tokens, remains: [...total.remains, ...remains], dryRun };
}

/** Whether anything of the user may be left, even if it is only the name in usage or in events. */
async function isKnown(context: Context, user: string, signal: AbortSignal): Promise<boolean> {
  const { store, hosts } = context;
  const records = [store.purges.read(user), store.limits.read(user), store.placements.read(user)];
  if ((await Promise.all<unknown>(records)).some((record) => record !== null)) return true;
  if ((await listTokens(store, user)).length + (await store.keyedTurns.count(user)) > 0) return true;
  const { answers, missing } = await hosts.everywhere(
    async (host) => await host.purge({ user, dryRun: true }, { signal }),
  );
  const { sessions, servers, bytes } = sum(answers.map(({ answer }) => answer));
  if (missing.length + sessions + servers + bytes > 0) return true;
  const usage = await store.usage.read({ from: 0, to: Date.now(), by: "user", user });
  return usage.length > 0 || (await gatherEvents(hosts, { user })).length > 0;
}

/** Leaves out records that cannot be read. */
async function recordsOf({ store }: Pick<Context, "store">, user: string): Promise<SessionRecord[]> {
  return (await store.sessions.list(() => undefined)).filter(({ owner }) => owner === user);
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

/**
 * Returns the parts that hosts have not erased, with the reasons. Deletes the records of the user's sessions on hosts
 * that are gone, except of those that another host takes over. A host that comes back erases their files by the record
 * of the purge.
 */
async function away(
  context: Context,
  user: string,
  { pending, missing, dryRun }: { pending: Purge["pending"]; missing: readonly Missing[]; dryRun: boolean },
): Promise<Remain[]> {
  const { hosts, store, directory } = context;
  const records = await recordsOf(context, user);
  return await Promise.all(
    pending.map(async (host) => {
      const sessions = records.filter((record) => record.host === (host ?? undefined));
      const { servers } = host === null ? { servers: {} } : await hosts.registryOf(host);
      const count = Object.values(servers).filter((server) => server.user === user).length;
      const what = `the files of the user on that host (sessions recorded there: ${sessions.length}, servers: ${count})`;
      const failed = missing.find((each) => each.host === host && !each.isGone);
      if (failed === undefined && host !== null && !dryRun) {
        const lost = sessions.filter(({ term }) => !directory.isShared || term === undefined).map(({ id }) => id);
        await store.sessions.deleteMany(lost, (record) => record.owner === user && record.host === host);
      }
      const why = failed === undefined ? "The host is away." : `The host did not erase it: ${failed.error.message}`;
      return { host, what, why: `${why} It erases them when serve or gc runs there.` };
    }),
  );
}
