import { FleetError, isFleetError, quote, type Suggestion } from "../../base/errors.js";
import { isSessionId, mayMean, meantIds } from "../../base/ids.js";
import { mayUse } from "../../base/session.js";
import type { Host } from "../fleet-hosts.js";
import { type GatherSessionsContext, gatherSessions, type SessionPlaces } from "../gather.js";

/**
 * Deletes sessions permanently, one after another, each on the host that has it. Continues after a session that is
 * missing or belongs to another user.
 *
 * @throws the FleetError of the first session that could not be deleted. If the call handled other sessions before it,
 * the error's `outcome` has their results.
 */
export async function deleteEverywhere(
  context: SessionPlaces,
  ids: readonly string[],
  user: string | undefined,
): Promise<{ deleted: string[]; notFound: string[] }> {
  const outcome = { deleted: [] as string[], notFound: [] as string[] };
  let listed: ReturnType<typeof listEverywhere> | undefined;
  const list = async () => {
    listed ??= listEverywhere(context, user);
    return await listed;
  };
  for (const id of new Set(ids)) {
    try {
      const wasDeleted = await deleteWhereItIs(context, id, user, list);
      (wasDeleted ? outcome.deleted : outcome.notFound).push(id);
    } catch (error) {
      const isFirst = outcome.deleted.length + outcome.notFound.length === 0;
      if (isFirst || !isFleetError(error)) throw error;
      throw error.reworded(() => ({}), { ...outcome });
    }
  }
  return outcome;
}

/** @returns whether the session existed */
async function deleteWhereItIs(
  context: SessionPlaces,
  id: string,
  user: string | undefined,
  list: () => ReturnType<typeof listEverywhere>,
): Promise<boolean> {
  const { store, directory, hosts } = context;
  const record = await store.sessions.read(id);
  if (record !== null && user !== undefined && record.owner !== user) return false;
  const holders = record === null ? await holdersOf(context, id, list) : [hosts.at(await directory.whereIs(record))];
  const deleted: string[] = [];
  for (const host of holders) deleted.push(...(await host.deleteSessions({ ids: [id], user })));
  return deleted.length > 0;
}

/** The sessions of all hosts, by host. */
async function listEverywhere({ hosts }: SessionPlaces, user: string | undefined) {
  return (await hosts.everywhere(async (host) => await host.sessions({ user }))).answers;
}

/**
 * Finds the hosts that have a session without a record.
 *
 * @param list reads the list of all sessions, once for all ids that have no record
 * @throws FleetError `FLEET_SESSION_AMBIGUOUS` when several users have a session with this id.
 */
async function holdersOf(
  { hosts }: SessionPlaces,
  id: string,
  list: () => ReturnType<typeof listEverywhere>,
): Promise<Host[]> {
  const { own } = hosts;
  if (own.name === null) return [own];
  const found = (await list()).flatMap(({ host, answer }) =>
    answer.filter((view) => view.id === id).map(({ owner }) => ({ host, owner })),
  );
  const owners = [...new Set(found.map(({ owner }) => owner))];
  if (owners.length > 1) {
    throw new FleetError("FLEET_SESSION_AMBIGUOUS", `${owners.length} users have a session ${quote(id)}.`, {
      suggestions: owners.map((owner): Suggestion => `copilotfleet delete ${id} --user ${owner}`),
    });
  }
  return found.map(({ host }) => host);
}

/** How many ids the message about an ambiguous text shows. */
const MOST_SHOWN = 5;

/**
 * For each text, returns the ids of the sessions that it may mean. Considers the sessions that `user` may use, or all
 * sessions if `user` is undefined. A complete id costs one read of a record. For other texts, this reads the ids of all
 * sessions. A fleet on several hosts must read the list of all sessions instead, but only once for all texts.
 */
export async function meantSessions(
  context: GatherSessionsContext,
  texts: readonly string[],
  user: string | undefined,
): Promise<string[][]> {
  const { store, hosts } = context;
  const isWhole = async (text: string) => {
    const record = isSessionId(text) ? await store.sessions.read(text) : null;
    return record !== null && (user === undefined || mayUse(record, user));
  };
  const whole = await Promise.all(texts.map(isWhole));
  const others = texts.filter((_, at) => !whole[at]);
  if (others.length === 0) return texts.map((text) => [text]);
  const isMeant = (id: string) => others.some((text) => mayMean(text, id));
  const ids =
    hosts.own.name === null
      ? await hosts.own.sessionIds(isMeant, user)
      : (await gatherSessions(context, user)).map(({ id }) => id);
  return texts.map((text, at) => (whole[at] ? [text] : meantIds(text, ids)));
}

/**
 * Returns the only id in the list; undefined if the list is empty.
 *
 * @throws FleetError `FLEET_SESSION_AMBIGUOUS` when there are several
 */
export function onlyMeant(text: string, [id, ...others]: readonly string[]): string | undefined {
  if (id === undefined || others.length === 0) return id;
  const all = [id, ...others];
  const shown = all.slice(0, MOST_SHOWN).join(", ") + (all.length > MOST_SHOWN ? ", …" : "");
  throw new FleetError("FLEET_SESSION_AMBIGUOUS", `${quote(text)} matches ${all.length} sessions: ${shown}.`, {
    suggestions: ["Give more of the id.", "copilotfleet list -q # prints whole ids"],
  });
}
