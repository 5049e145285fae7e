import { FleetCommand } from "../cli/base-command.js";
import { renderServers } from "../cli/servers.js";
import type { ServerView } from "../pool/server.js";

export default class Ps extends FleetCommand {
  static override summary = "Show all servers: what runs, what is stopped, what died.";
  static override examples = ["<%= config.bin %> ps", "<%= config.bin %> ps --json"];

  async run(): Promise<{ servers: ServerView[] }> {
    await this.parse(Ps);
    return await this.withFleet(async (fleet) => {
      const servers = await fleet.servers();
      this.log(servers.length === 0 ? "No servers. Start one: copilotfleet spawn --user USER" : renderServers(servers));
      return { servers };
    });
  }
}
