import type { SessionView } from "../sessions/view.js";
import { renderAge, renderBytes, renderState, renderTable } from "./table.js";

/**
 * The table of sessions that `list` prints.
 *
 * @param hosts the hosts of the fleet: where there are several, the table says which one each is on
 */
export function renderSessions(sessions: readonly SessionView[], hosts: readonly string[]): string {
  const withHost = hosts.length > 1;
  const age = (since: string) => renderAge(Math.max(0, Date.now() - Date.parse(since)));
  return renderTable(
    ["SESSION", "OWNER", ...(withHost ? ["HOST"] : []), "SERVER", "STATE", "AGE", "LAST USE", "SIZE", "LEASE"],
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
