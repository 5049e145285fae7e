import type { SessionRecord } from "../model/session.js";
import type { OnUnreadable, Store } from "./ports.js";

/**
 * The sessions whose records name this host or no host; if the store has no hosts, all sessions.
 *
 * @param onUnreadable as for `SessionStore.list`
 */
export async function sessionsOfThisHost(
  { hosts, sessions }: Store,
  onUnreadable?: OnUnreadable,
): Promise<SessionRecord[]> {
  const isHere = ({ host }: SessionRecord) => hosts === null || host === undefined || host === hosts.own;
  return (await sessions.list(onUnreadable)).filter(isHere);
}
