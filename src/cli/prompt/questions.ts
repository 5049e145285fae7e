import { countOf, printable } from "../../config/values/text.js";

interface Owned {
  id: string;
  /** Null if it is not known. */
  owner: string | null;
}

/** Asks about exactly the sessions that are about to be deleted. */
export function askToDelete(sessions: readonly Owned[]): string {
  return `Delete ${named("session", sessions, ["with its history", "with their history"])}?`;
}

/** Asks about exactly the tokens that are about to be revoked. */
export function askToRevoke(tokens: readonly { id: string; user: string }[]): string {
  const owned = tokens.map(({ id, user }) => ({ id, owner: user }));
  return `Revoke ${named("token", owned, ["and disconnect its clients", "and disconnect their clients"])}?`;
}

/** Asks about everything that a purge would erase. */
export function askToPurge({
  user,
  sessions,
  servers,
  tokens,
}: Record<"sessions" | "servers" | "tokens", number> & { user: string }): string {
  const counts = [countOf(sessions, "session"), countOf(servers, "server"), countOf(tokens, "token")].join(", ");
  return `Erase all data of ${printable(user)} (${counts})? Nothing brings it back.`;
}

/** Names one or more things, their owners and what else is lost. */
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
