import type { ConnectInfo } from "../../hosts/options.js";
import { FleetCommand } from "../base-command.js";
import { actingUserFlag } from "../flags/flags.js";

export default class Connect extends FleetCommand {
  static override summary =
    "Print the URL and the connection token that an SDK client needs for a user's running server.";
  static override description =
    "The connection token is a secret: anybody who has it acts as this user. Prints shell exports, or JSON with --json.";
  static override examples = [
    'eval "$(<%= config.bin %> connect --user alice)"',
    "<%= config.bin %> connect --user alice --json",
  ];
  static override flags = { user: actingUserFlag };

  async run(): Promise<ConnectInfo> {
    const { flags } = await this.parse(Connect);
    return await this.act(
      "Looking for the server",
      async (fleet) => await fleet.clients.connectInfo(flags.user),
      // The address and the token contain only characters that no shell treats specially.
      ({ url, token }) => `export COPILOT_CLI_URL=${url}\nexport COPILOT_CONNECTION_TOKEN=${token}`,
    );
  }
}
