import { FleetCommand } from "../cli/base-command.js";
import { renderServers, warnOfClosedPool } from "../cli/render/servers.js";
import type { PoolState } from "../pool/admission.js";
import type { ServerView } from "../pool/server.js";

export default class Ps extends FleetCommand {
  static override summary = "Show all servers: running, stopped and dead.";
  static override examples = ["<%= config.bin %> ps", "<%= config.bin %> ps --json"];

  async run(): Promise<{ pool: PoolState; servers: ServerView[] }> {
    await this.parse(Ps);
    return await this.withFleet(async (fleet) => {
      const servers = await fleet.servers.list();
      const pool = await fleet.pool.state();
      if (!this.jsonEnabled()) warnOfClosedPool(pool);
      const none = "No servers. Start one: copilotfleet spawn --user USER";
      this.log(servers.length === 0 ? none : renderServers(servers, await fleet.hosts.names()));
      return { pool, servers };
    });
  }
}
