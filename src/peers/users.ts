import { compareText } from "../config/values/text.js";
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
