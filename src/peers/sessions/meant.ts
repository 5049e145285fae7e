import { FleetError, quote } from "../../errors.js";
import { isSessionId } from "../../model/ids.js";
import { mayMean, meantIds } from "../../model/reference.js";
import { mayUse } from "../../model/session.js";
import { type GatherSessionsContext, gatherSessions } from "../gather.js";

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
