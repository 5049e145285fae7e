import { countOf, printable } from "../../config/values/text.js";

interface Owned {
  id: string;
  /** Null if it is not known. */
  owner: string | null;
}

/** The question before a deletion. Names exactly the sessions that would be deleted. */
export function askToDelete(sessions: readonly Owned[]): string {
  return `Delete ${named("session", sessions, ["with its history", "with their history"])}?`;
}

/** The question before a revocation. Names exactly the tokens that would be revoked. */
export function askToRevoke(tokens: readonly { id: string; user: string }[]): string {
  const owned = tokens.map(({ id, user }) => ({ id, owner: user }));
  return `Revoke ${named("token", owned, ["and disconnect its clients", "and disconnect their clients"])}?`;
}

/** The question before a purge. Counts everything that the purge would erase. */
export function askToPurge({
  user,
  sessions,
  servers,
  tokens,
}: Record<"sessions" | "servers" | "tokens", number> & { user: string }): string {
  const counts = [countOf(sessions, "session"), countOf(servers, "server"), countOf(tokens, "token")].join(", ");
  return `Erase all data of ${printable(user)} (${counts})? Nothing brings it back.`;
}

/** Names the things and their owners, and then what else is lost: `ofOne` for one thing, `ofMany` for several. */
function named(noun: string, things: readonly Owned[], [ofOne, ofMany]: readonly [string, string]): string {
  const byOwner = new Map<string, string[]>();
  for (const { id, owner } of things) {
    const key = printable(owner ?? "unknown owner");
    byOwner.set(key, [...(byOwner.get(key) ?? []), printable(id)]);
  }
  const groups = [...byOwner];
  const [[owner = "", ids = []] = []] = groups;
  if (things.length === 1) return `the ${noun} ${ids[0]} of ${owner} ${ofOne}`;
  if (groups.length === 1) return `${countOf(things.length, noun)} of ${owner} ${ofMany}: ${ids.join(", ")}`;
  const lists = groups.map(([each, theirs]) => `${each}: ${theirs.join(", ")}`);
  return `${countOf(things.length, noun)} ${ofMany} (${lists.join("; ")})`;
}
