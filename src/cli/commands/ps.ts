import { Flags } from "@oclif/core";
import { SERVER_STATES } from "../../base/server.js";
import type { PoolState } from "../../servers/admission.js";
import type { ServerView } from "../../servers/server.js";
import { choiceFlag, listFlags, userFilter } from "../flags/flags.js";
import { ListCommand } from "../list-command.js";
import { describeClosedPool, describeFailures, SERVERS, withoutHost } from "../render/columns.js";

export default class Ps extends ListCommand {
  static override aliases = ["servers"];
  static override summary = "Show servers: running, stopped and dead.";
  static override examples = [
    "<%= config.bin %> ps",
    "<%= config.bin %> ps --state failed -o wide",
    "<%= config.bin %> ps -q --host h1 --sort uptime:desc",
  ];
  static override flags = {
    user: userFilter("show only the server of this user"),
    state: choiceFlag("state", "show only servers in this state", SERVER_STATES),
    host: Flags.string({ description: "show only servers on this host", helpValue: "HOST" }),
    ...listFlags(SERVERS),
  };

  async run(): Promise<{ pool: PoolState; servers: ServerView[] }> {
    const { flags } = await this.parse(Ps);
    const { user, state, host } = flags;
    const isSelected = state !== undefined || host !== undefined;
    return await this.printList(SERVERS, flags, async (fleet) => {
      const rows = await fleet.servers.list({ user, state, host });
      const pool = await fleet.pool.state();
      return {
        rows,
        resultOf: (servers) => ({ pool, servers }),
        none: isSelected ? "No servers." : `No servers. Start one: copilotfleet spawn --user ${user ?? "USER"}`,
        without: withoutHost(await fleet.hosts.names()),
        notice: describeClosedPool(pool),
        below: describeFailures,
      };
    });
  }
}
