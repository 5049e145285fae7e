import { randomBytes } from "node:crypto";
import type { Purged, Remain } from "../data/purge/purge.js";
import { FleetError, option, quote } from "../errors.js";
import { audited } from "../events/audited.js";
import { removeBlocks } from "../hosts/remains.js";
import { listTokens, revokeTokens } from "../identity/tokens.js";
import { serverIdOf } from "../model/ids.js";
import type { Purge } from "../model/placement.js";
import type { SessionRecord } from "../model/session.js";
import type { SessionsContext } from "../sessions/context.js";
import { gatherEvents } from "./events/all-events.js";
import type { FleetHosts, Missing } from "./fleet-hosts.js";
import { unknownUser } from "./users.js";

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
  /** The hosts that never come back, as an operator has stated. */
  lostHosts: readonly string[];
  signal: AbortSignal;
}

type Context = Pick<SessionsContext, "store" | "config" | "directory" | "events" | "warn"> & {
  hosts: FleetHosts;
  stateRoot: string;
};

/**
 * Erases all data of a user on all hosts. First records that the purge is under way. From then on, the user cannot
 * begin anything new. If this process is killed or a host is away, the next purge, gc or `serve` on each host finishes
 * the purge there.
 *
 * @throws FleetError `FLEET_USER_NOT_FOUND`
 */
export async function purgeUser(context: Context, user: string, request: PurgeRequest): Promise<PurgeReceipt> {
  const { store, hosts } = context;
  const { dryRun, lostHosts, signal } = request;
  const names = await hosts.names();
  await assertLost(context, lostHosts, (await store.purges.read(user))?.pending ?? names);
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
  const pending = dryRun
    ? [...new Set([...missing.map(({ host }) => host), ...lostHosts])]
    : ((await store.purges.read(user))?.pending ?? []);
  const remains = await away(context, user, { pending, missing, ...request });
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

/**
 * Refuses a name in `lostHosts` if this host is alive, because it erases its part itself, or if the purge does not wait
 * for it.
 */
async function assertLost(
  { hosts, directory }: Context,
  lostHosts: readonly string[],
  pending: Purge["pending"],
): Promise<void> {
  if (lostHosts.length === 0) return;
  const here = [hosts.own.name, ...(await alive(directory))];
  const allowed = pending.filter((host) => host !== null && !here.includes(host));
  for (const host of lostHosts) {
    if (allowed.includes(host)) continue;
    const why = here.includes(host) ? "is alive and erases its part itself" : "is not a host that this purge waits for";
    const list = allowed.length === 0 ? "no host, because all are alive" : allowed.map(quote).join(", ");
    const message = `${option("lostHosts")} ${quote(host)} ${why}. Allowed: ${list}`;
    throw new FleetError("FLEET_USAGE_INVALID", message, { suggestions: ["copilotfleet top --once"] });
  }
}

/** Leaves out records that cannot be read. */
async function recordsOf({ store }: Pick<Context, "store">, user: string): Promise<SessionRecord[]> {
  return (await store.sessions.list(() => undefined)).filter(({ owner }) => owner === user);
}

async function alive(directory: Context["directory"]): Promise<string[]> {
  return (await directory.list()).filter(({ gone }) => !gone).map(({ name }) => name);
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

interface Away extends PurgeRequest {
  pending: Purge["pending"];
  missing: readonly Missing[];
}

/** Returns the parts that hosts have not erased, with the reasons. Gives up on lost hosts, except in a dry run. */
async function away(context: Context, user: string, { pending, missing, ...request }: Away): Promise<Remain[]> {
  const { hosts, directory } = context;
  const records = await recordsOf(context, user);
  // A host may have come back during the purge. It then erases its part itself.
  const back = await alive(directory);
  return await Promise.all(
    pending.map(async (host) => {
      const sessions = records.filter((record) => record.host === (host ?? undefined));
      const { servers } = host === null ? { servers: {} } : await hosts.registryOf(host);
      const count = Object.values(servers).filter((server) => server.user === user).length;
      const what = `the files of the user on that host (sessions recorded there: ${sessions.length}, servers: ${count})`;
      const failed = missing.find((each) => each.host === host && !each.isGone);
      const isLost = host !== null && failed === undefined && request.lostHosts.includes(host) && !back.includes(host);
      // Do not give up a host that has sessions in the shared storage. Another host takes over these sessions, and
      // erases them.
      if (isLost && !sessions.some((record) => isTakenOver(context, record))) {
        if (!request.dryRun) await giveUp(context, user, { host, sessions });
        return { host, what, why: LOST };
      }
      const why = failed === undefined ? "The host is away." : `The host did not erase it: ${failed.error.message}`;
      const hint = host === null || failed !== undefined || isLost ? "" : ` ${hintOf(host)}`;
      return { host, what, why: `${why} It erases them when serve or gc runs there.${hint}` };
    }),
  );
}

const LOST =
  "The host is lost, as an operator reported, so nothing can erase them now. The fleet keeps no record of these sessions and servers, only a note with pseudonyms. If the host comes back, serve or gc there erases the files.";

function hintOf(host: string): string {
  return `If it never comes back, purge the user again with --lost-host ${host} (over HTTP: lostHosts=${host}).`;
}

function isTakenOver({ directory }: Context, { term }: SessionRecord): boolean {
  return directory.isShared && term !== undefined;
}

/**
 * Removes the records of a user's sessions and servers on a lost host, and marks the host's part of the purge as done.
 * Also records another purge, with pseudonyms in place of names. If the host comes back, it erases its part by this
 * purge.
 */
async function giveUp(
  { store, config, events, stateRoot }: Context,
  user: string,
  { host, sessions }: { host: string; sessions: readonly SessionRecord[] },
): Promise<void> {
  const { Pseudonyms } = await import("../events/pseudonyms.js");
  const pseudonyms = await Pseudonyms.open(stateRoot, store);
  const detail = `without host ${host}`;
  await audited(events, { type: "user.purged", user: pseudonyms.of(user), reason: "host-lost", detail }, async () => {
    const ids = sessions.map(({ id }) => id);
    // The lost host may have traces of sessions that other hosts have taken over and erased.
    const all = new Set([...ids, ...((await store.purges.read(user))?.sessions ?? [])]);
    const left = [user, serverIdOf(user), ...all].map(pseudonyms.of);
    const mark = `${pseudonyms.of(user)}-${randomBytes(8).toString("hex")}`;
    await store.purges.begin({ user: mark, begunAt: new Date().toISOString(), pending: [host], left });
    await store.sessions.deleteMany(ids, (record) => record.owner === user && record.host === host);
    await store.hosts?.forgetServersOf(host, user);
    await removeBlocks({ store, config }, host, async (id) => all.has(id) && (await store.sessions.read(id)) === null);
    await store.purges.done(user, host);
  });
}
