import { Flags } from "@oclif/core";
import { FleetCommand } from "../cli/base-command.js";
import { userFlag } from "../cli/flags.js";
import { renderAge, renderBytes, renderState, renderTable } from "../cli/table.js";
import type { SessionView } from "../sessions/view.js";

export default class List extends FleetCommand {
  static override summary = "Show sessions, the latest used first.";
  static override examples = ["<%= config.bin %> list", "<%= config.bin %> list --user alice --state idle --json"];
  static override flags = {
    user: userFlag,
    state: Flags.string({ description: "only those in this state", options: ["active", "idle", "draining", "gone"] }),
  };

  async run(): Promise<{ sessions: SessionView[] }> {
    const { flags } = await this.parse(List);
    return await this.withFleet(async (fleet) => {
      const all = await fleet.sessions(flags.user);
      const sessions = flags.state === undefined ? all : all.filter(({ state }) => state === flags.state);
      const age = (since: string) => renderAge(Math.max(0, Date.now() - Date.parse(since)));
      this.log(
        sessions.length === 0
          ? "No sessions."
          : renderTable(
              ["SESSION", "OWNER", "SERVER", "STATE", "AGE", "LAST USE", "SIZE", "LEASE"],
              sessions.map((session) => [
                session.id,
                session.owner,
                session.serverId,
                renderState(session.state),
                age(session.createdAt),
                age(session.lastUsedAt),
                renderBytes(session.sizeBytes),
                session.lease === null ? null : session.lease.holder,
              ]),
            ),
      );
      return { sessions };
    });
  }
}
