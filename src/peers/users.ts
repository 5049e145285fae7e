import { nearestOf } from "../config/values/nearest.js";
import { compareText } from "../config/values/text.js";
import { FleetError, quote, type Suggestion } from "../errors.js";
import { listTokens } from "../identity/tokens.js";
import type { Suspension } from "../model/usage/user-limits.js";
import type { Stopped } from "../pool/stop/stop.js";
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
  /** Null unless the user is suspended. */
  suspended: Suspension | null;
}

/** A suspension that has begun. */
export interface SuspendedUser extends Suspension {
  user: string;
  /** Whether the user has a session, a server or a token. */
  known: boolean;
  /** The servers of the user that were stopped. */
  stopped: Stopped[];
}

/** Returns the users who have a session, a server or a token, and those who are suspended, sorted by name. */
export async function listUsers({ store, hosts, warn }: SessionPlaces): Promise<UserEntry[]> {
  const [records, servers, tokens, limits] = await Promise.all([
    store.sessions.list(warnOfUnreadable(warn)),
    hosts.recorded(),
    listTokens(store),
    store.limits.list(),
  ]);
  const users = new Map<string, UserEntry>();
  const entryOf = (user: string) => {
    const entry = users.get(user) ?? { user, sessions: 0, servers: 0, tokens: 0, suspended: null };
    users.set(user, entry);
    return entry;
  };
  const add = (user: string | null, what: "sessions" | "servers" | "tokens") => {
    if (user !== null) entryOf(user)[what]++;
  };
  for (const { owner } of records) add(owner, "sessions");
  for (const { server } of servers) add(server.user, "servers");
  for (const { user } of tokens) add(user, "tokens");
  for (const { user, suspended } of limits) if (suspended !== undefined) entryOf(user).suspended = suspended;
  return [...users.values()].sort((a, b) => compareText(a.user, b.user));
}

export async function unknownUser(places: SessionPlaces, user: string): Promise<FleetError> {
  const near = nearestOf(user, await listUsers(places), (each) => each.user);
  return new FleetError("FLEET_USER_NOT_FOUND", `The fleet knows nothing about user ${quote(user)}.`, {
    suggestions: [...near.map((each): Suggestion => `Did you mean ${each.user}?`), "copilotfleet user list"],
  });
}
