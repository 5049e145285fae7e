import { printableLines } from "../../../config/values/text.js";
import type { SessionView } from "../../../sessions/view.js";
import { renderBytes, renderSince, renderState, renderUntil, SESSION } from "../table.js";
import type { List } from "./list.js";

const DAY_MS = 86_400_000;

export const SESSIONS: List<SessionView> = {
  kind: "session",
  idOf: ({ id }) => id,
  columns: [
    { ...SESSION, field: "id" },
    { heading: "OWNER", field: "owner", cut: "middle" },
    { heading: "HOST", field: "host", yields: 4, cut: "middle" },
    { heading: "SERVER", field: "serverId", yields: 6, cut: "middle" },
    { heading: "STATE", field: "state", value: shownState, cell: (session) => renderState(shownState(session)) },
    { heading: "AGE", field: "createdAt", yields: 5, isAge: true, cell: ({ createdAt }) => renderSince(createdAt) },
    {
      ...{ heading: "LAST USE", field: "lastUsedAt", yields: 1, isAge: true },
      cell: ({ lastUsedAt }) => renderSince(lastUsedAt),
    },
    { heading: "SIZE", field: "sizeBytes", yields: 3, cell: ({ sizeBytes }) => renderBytes(sizeBytes) },
    { heading: "LEASE", field: "leaseHolder", yields: 2, cut: "middle", value: ({ lease }) => lease?.holder ?? null },
    { heading: "KIND", field: "kind", wide: true },
    { heading: "MEMBERS", field: "members", wide: true, value: ({ members }) => members.join(" ") },
    { heading: "PERSISTENCE", field: "persistence", wide: true },
    { heading: "MODEL", field: "model", wide: true },
    {
      ...{ heading: "EXPIRES", field: "expiresAt", yields: 1 },
      cell: ({ expiresAt }) => renderUntil(expiresAt),
      when: ({ expiresAt }) => expiresAt !== null && Date.parse(expiresAt) - Date.now() < DAY_MS,
    },
    { heading: "PURPOSE", field: "purpose", wide: true },
    {
      ...{ heading: "TITLE", field: "title", cut: "end" },
      cell: ({ title }) => title && printableLines(title),
      when: ({ title }) => title !== null,
    },
  ],
};

/** The state to show: `stranded` while the host of the session is away. */
export function shownState({ state, stranded }: SessionView): string {
  return stranded ? "stranded" : state;
}
