import { FleetCommand } from "../cli/base-command.js";
import { choiceFlag, userFlag } from "../cli/flags/flags.js";
import { renderAge, renderBytes, renderState, renderTable, SESSION } from "../cli/render/table.js";
import type { SessionView } from "../sessions/view.js";

export default class List extends FleetCommand {
  static override summary = "Show sessions, most recently used first.";
  static override examples = ["<%= config.bin %> list", "<%= config.bin %> list --user alice --state idle --json"];
  static override flags = {
    user: userFlag,
    state: choiceFlag("state", "show only sessions in this state", ["active", "idle", "draining", "gone"]),
  };

  async run(): Promise<{ sessions: SessionView[] }> {
    const { flags } = await this.parse(List);
    return await this.withFleet(async (fleet) => {
      const all = await fleet.sessions.list({ user: flags.user });
      const sessions = flags.state === undefined ? all : all.filter(({ state }) => state === flags.state);
      this.log(sessions.length === 0 ? "No sessions." : renderSessions(sessions, await fleet.hosts.names()));
      return { sessions };
    });
  }
}

function renderSessions(sessions: readonly SessionView[], hosts: readonly string[]): string {
  const age = (since: string) => renderAge(Math.max(0, Date.now() - Date.parse(since)));
  return renderTable(
    [
      SESSION,
      { heading: "OWNER", cut: "middle" },
      hosts.length > 1 ? { heading: "HOST", yields: 4, cut: "middle" } : null,
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
      session.host,
      session.serverId,
      renderState(session.stranded ? "stranded" : session.state),
      age(session.createdAt),
      age(session.lastUsedAt),
      renderBytes(session.sizeBytes),
      session.lease === null ? null : session.lease.holder,
    ]),
  );
}
