import { FleetError, quote } from "../../errors.js";
import { isSessionId } from "../../model/ids.js";
import { meantIds } from "../../model/reference.js";
import { mayUse } from "../../model/session.js";
import { type GatherSessionsContext, gatherSessions } from "../gather.js";

/** How many ids the message about an ambiguous text shows. */
const MOST_SHOWN = 5;

/**
 * The ids of the sessions that a person may mean by a text, among the sessions that `user` may use, or among all sessions
 * if `user` is undefined. The whole id of a recorded session costs one read. For any other text, lists the sessions.
 */
export async function meantSessions(
  context: GatherSessionsContext,
  text: string,
  user: string | undefined,
): Promise<string[]> {
  const record = isSessionId(text) ? await context.store.sessions.read(text) : null;
  if (record !== null && (user === undefined || mayUse(record, user))) return [text];
  const sessions = await gatherSessions(context, user);
  return meantIds(
    text,
    sessions.map(({ id }) => id),
  );
}

/**
 * The only one of these ids; undefined if there are none.
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
