import { choiceFlag, userFlag } from "../cli/flags/flags.js";
import { listFlags } from "../cli/flags/list.js";
import { ListCommand } from "../cli/list-command.js";
import { SESSIONS } from "../cli/render/lists/sessions.js";
import { withoutHost } from "../cli/render/servers.js";
import type { SessionView } from "../sessions/view.js";

export default class List extends ListCommand {
  static override summary = "Show sessions, most recently used first.";
  static override examples = ["<%= config.bin %> list", "<%= config.bin %> list --user alice --state idle --json"];
  static override flags = {
    user: userFlag,
    state: choiceFlag("state", "show only sessions in this state", ["active", "idle", "draining", "gone"]),
    ...listFlags(SESSIONS),
  };

  async run(): Promise<{ sessions: SessionView[] }> {
    const { flags } = await this.parse(List);
    return await this.printList(SESSIONS, flags, async (fleet) => {
      const all = await fleet.sessions.list({ user: flags.user });
      return {
        rows: flags.state === undefined ? all : all.filter(({ state }) => state === flags.state),
        resultOf: (sessions) => ({ sessions }),
        none: "No sessions.",
        without: withoutHost(await fleet.hosts.names()),
      };
    });
  }
}
