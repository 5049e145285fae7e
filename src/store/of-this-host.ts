import type { SessionRecord } from "../model/session.js";
import type { Store } from "./ports.js";

/** The sessions whose records name this host or no host; if the store has no hosts, all sessions. */
export async function sessionsOfThisHost({ hosts, sessions }: Store): Promise<SessionRecord[]> {
  const isHere = ({ host }: SessionRecord) => hosts === null || host === undefined || host === hosts.own;
  return (await sessions.list()).filter(isHere);
}
