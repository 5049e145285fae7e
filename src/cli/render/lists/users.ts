import { countOf, printable } from "../../../config/values/text.js";
import type { PurgeReceipt } from "../../../peers/purge.js";
import type { UserEntry } from "../../../peers/users.js";
import { renderBytes, renderSince, USER } from "../table.js";
import type { List } from "./list.js";

export const USERS: List<UserEntry> = {
  kind: "user",
  idOf: ({ user }) => user,
  columns: [
    { ...USER, field: "user" },
    { heading: "SESSIONS", field: "sessions" },
    { heading: "SERVERS", field: "servers" },
    { heading: "TOKENS", field: "tokens" },
    {
      ...{ heading: "SUSPENDED", field: "suspended", isAge: true, value: ({ suspended }) => suspended?.since ?? null },
      cell: ({ suspended }) => (suspended === null ? null : renderSince(suspended.since)),
    },
    { heading: "REASON", field: "reason", wide: true, value: ({ suspended }) => suspended?.reason ?? null },
  ],
};

/** The receipt of a purge, for people. */
export function renderReceipt({ user, sessions, servers, tokens, bytes, remains, dryRun }: PurgeReceipt): string {
  const done = dryRun ? "Would erase" : "Erased";
  const counts = [countOf(sessions, "session"), countOf(servers, "server"), countOf(tokens, "token")].join(", ");
  const lines = [`${done} the data of ${printable(user)}: ${counts} (${renderBytes(bytes)})`];
  for (const { host, what, why } of remains) {
    lines.push(`Remains${host === null ? "" : ` on host ${printable(host)}`}: ${printable(what)}. ${printable(why)}`);
  }
  if (remains.length === 0 && !dryRun)
    lines.push("Nothing remains in the fleet. Backups and logs outside of it are yours to erase.");
  return lines.join("\n");
}
