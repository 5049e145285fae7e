import { listFlags } from "../cli/flags/list.js";
import { ListCommand } from "../cli/list-command.js";
import { SERVERS } from "../cli/render/lists/servers.js";
import { describeClosedPool, describeFailures, withoutHost } from "../cli/render/servers.js";
import type { PoolState } from "../pool/admission.js";
import type { ServerView } from "../pool/server.js";

export default class Ps extends ListCommand {
  static override summary = "Show all servers: running, stopped and dead.";
  static override examples = ["<%= config.bin %> ps", "<%= config.bin %> ps --json"];
  static override flags = listFlags(SERVERS);

  async run(): Promise<{ pool: PoolState; servers: ServerView[] }> {
    const { flags } = await this.parse(Ps);
    return await this.printList(SERVERS, flags, async (fleet) => {
      const rows = await fleet.servers.list();
      const pool = await fleet.pool.state();
      return {
        rows,
        resultOf: (servers) => ({ pool, servers }),
        none: "No servers. Start one: copilotfleet spawn --user USER",
        without: withoutHost(await fleet.hosts.names()),
        notice: describeClosedPool(pool),
        below: describeFailures,
      };
    });
  }
}
