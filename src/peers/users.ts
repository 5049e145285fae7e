import { nearestOf } from "../config/values/nearest.js";
import { compareText } from "../config/values/text.js";
import { FleetError, quote, type Suggestion } from "../errors.js";
import { listTokens } from "../identity/tokens.js";
import { warnOfUnreadable } from "../sessions/problems.js";
import type { SessionPlaces } from "./gather.js";

export interface UserEntry {
  user: string;
  /** How many recorded sessions the user owns. */
  sessions: number;
  /** How many servers belong to the user, running or not, on all hosts. */
  servers: number;
  /** How many tokens of the user were issued and not revoked. */
  tokens: number;
}

/** Returns the users who have a session, a server or a token, sorted by name. */
export async function listUsers({ store, hosts, warn }: SessionPlaces): Promise<UserEntry[]> {
  const [records, servers, tokens] = await Promise.all([
    store.sessions.list(warnOfUnreadable(warn)),
    hosts.recorded(),
    listTokens(store),
  ]);
  const users = new Map<string, UserEntry>();
  const add = (user: string | null, what: "sessions" | "servers" | "tokens") => {
    if (user === null) return;
    const entry = users.get(user) ?? { user, sessions: 0, servers: 0, tokens: 0 };
    entry[what]++;
    users.set(user, entry);
  };
  for (const { owner } of records) add(owner, "sessions");
  for (const { server } of servers) add(server.user, "servers");
  for (const { user } of tokens) add(user, "tokens");
  return [...users.values()].sort((a, b) => compareText(a.user, b.user));
}

export async function unknownUser(places: SessionPlaces, user: string): Promise<FleetError> {
  const near = nearestOf(user, await listUsers(places), (each) => each.user);
  return new FleetError("FLEET_USER_NOT_FOUND", `The fleet knows nothing about user ${quote(user)}.`, {
    suggestions: [...near.map((each): Suggestion => `Did you mean ${each.user}?`), "copilotfleet user list"],
  });
}
