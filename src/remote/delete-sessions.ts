import { FleetError, quote } from "../errors.js";
import type { FindContext } from "./find-session.js";
import type { HostActions } from "./host-actions.js";

/**
 * Deletes sessions for good, one after the other, each on the host that has it; deleting what is gone is success.
 *
 * @throws FleetError as `Sessions.delete`; `FLEET_SESSION_STRANDED`, `FLEET_HOST_AWAY`: those before it are gone.
 */
export async function deleteEverywhere(
  context: FindContext,
  ids: readonly string[],
  user: string | undefined,
): Promise<string[]> {
  const { store, directory, hosts } = context;
  for (const id of ids) {
    const record = await store.readSession(id);
    const isForeign = record !== null && user !== undefined && record.owner !== user;
    if (isForeign) continue; // as good as not there
    const holders = record === null ? await holdersOf(context, id, user) : [hosts.at(await directory.whereIs(record))];
    for (const host of holders) await host.deleteSessions([id], user);
  }
  return [...ids];
}

/** The hosts on whose disks a session lies that no record knows. */
async function holdersOf({ hosts }: FindContext, id: string, user: string | undefined): Promise<HostActions[]> {
  const { own } = hosts;
  if (own.name === null) return [own];
  const { answers } = await hosts.everywhere(async (host) => await host.sessions(user));
  const found = answers.flatMap(({ host, answer }) =>
    answer.filter((view) => view.id === id).map(({ owner }) => ({ host, owner })),
  );
  const owners = [...new Set(found.map(({ owner }) => owner))];
  if (owners.length > 1) {
    throw new FleetError("FLEET_SESSION_AMBIGUOUS", `${owners.length} users have a session ${quote(id)}.`, {
      suggestions: owners.map((owner) => `copilotfleet delete ${id} --user ${owner}`),
    });
  }
  return found.map(({ host }) => host);
}
