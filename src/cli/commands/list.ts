import { Flags } from "@oclif/core";
import { SESSION_STATES } from "../../base/session.js";
import type { SessionView } from "../../sessions/view.js";
import { choiceFlag, listFlags, purposeFlag, userFilter } from "../flags/flags.js";
import { ListCommand } from "../list-command.js";
import { SESSIONS, withoutHost } from "../render/columns.js";

export default class List extends ListCommand {
  static override aliases = ["ls", "sessions"];
  static override summary = "Show sessions, most recently used first.";
  static override examples = [
    "<%= config.bin %> list",
    "<%= config.bin %> list --user alice --state idle --json",
    "<%= config.bin %> list --purpose review --sort size:desc --limit 10",
  ];
  static override flags = {
    user: userFilter("show only sessions of this user"),
    state: choiceFlag("state", "show only sessions in this state", SESSION_STATES),
    purpose: purposeFlag("show only sessions with this purpose"),
    host: Flags.string({ description: "show only sessions on this host", helpValue: "HOST" }),
    model: Flags.string({
      description: "show only sessions with this model; a session without its own has session.model",
      helpValue: "MODEL",
    }),
    ...listFlags(SESSIONS),
  };

  async run(): Promise<{ sessions: SessionView[] }> {
    const { flags } = await this.parse(List);
    const { user, state, purpose, host, model } = flags;
    return await this.printList(SESSIONS, flags, async (fleet) => ({
      rows: await fleet.sessions.list({ user, state, purpose, host, model }),
      resultOf: (sessions) => ({ sessions }),
      none: "No sessions.",
      without: withoutHost(await fleet.hosts.names()),
    }));
  }
}
