import { Flags } from "@oclif/core";
import { FleetCommand } from "../cli/base-command.js";
import { userFlag } from "../cli/flags/flags.js";
import { renderSessions } from "../cli/render/sessions.js";
import type { SessionView } from "../sessions/view.js";

export default class List extends FleetCommand {
  static override summary = "Show sessions, most recently used first.";
  static override examples = ["<%= config.bin %> list", "<%= config.bin %> list --user alice --state idle --json"];
  static override flags = {
    user: userFlag,
    state: Flags.string({
      description: "show only sessions in this state",
      options: ["active", "idle", "draining", "gone"],
    }),
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
