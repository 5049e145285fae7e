import type { SessionView } from "../../sessions/view.js";
import { renderAge, renderBytes, renderState, renderTable, SESSION } from "./table.js";

/**
 * Renders the table of sessions for `list`.
 *
 * @param hosts the hosts of the fleet; if there are several, the table has a column for the host
 */
export function renderSessions(sessions: readonly SessionView[], hosts: readonly string[]): string {
  const withHost = hosts.length > 1;
  const age = (since: string) => renderAge(Math.max(0, Date.now() - Date.parse(since)));
  return renderTable(
    [
      SESSION,
      { heading: "OWNER", cut: "middle" },
      ...(withHost ? [{ heading: "HOST", yields: 4, cut: "middle" } as const] : []),
      { heading: "SERVER", yields: 6, cut: "middle" },
      "STATE",
      { heading: "AGE", yields: 5 },
      { heading: "LAST USE", yields: 1 },
      { heading: "SIZE", yields: 3 },
      { heading: "LEASE", yields: 2, cut: "middle" },
    ],
    sessions.map((session) => [
      session.id,
      session.owner,
      ...(withHost ? [session.host] : []),
      session.serverId,
      renderState(session.stranded ? "stranded" : session.state),
      age(session.createdAt),
      age(session.lastUsedAt),
      renderBytes(session.sizeBytes),
      session.lease === null ? null : session.lease.holder,
    ]),
  );
}
