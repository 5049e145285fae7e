import { Args } from "@oclif/core";
import { FleetCommand } from "../../cli/base-command.js";
import { usage, userFlag } from "../../cli/flags.js";

export default class TokenRevoke extends FleetCommand {
  static override summary = "Revoke tokens, by their ids or all of a user. Revoking what is gone is success.";
  static override description = "Connections that were made with one of them end within seconds.";
  static override examples = [
    "<%= config.bin %> token revoke 0123456789abcdef",
    "<%= config.bin %> token revoke --user alice",
  ];
  static override strict = false;
  /** oclif would otherwise read an argument that is not given from standard input. */
  static override args = { token: Args.string({ description: "ids of tokens", ignoreStdin: true }) };
  static override flags = { user: userFlag };

  async run(): Promise<{ revoked: string[] }> {
    const { argv, flags } = await this.parse(TokenRevoke);
    const ids = argv as string[];
    const { user } = flags;
    if ((ids.length === 0) === (user === undefined)) throw usage("Give the ids of tokens or --user, not both.");
    return await this.withFleet(async (fleet) => {
      const revoked = await fleet.revokeTokens(user === undefined ? { ids } : { user });
      this.log(revoked.length === 0 ? "Nothing to revoke." : revoked.join("\n"));
      return { revoked };
    });
  }
}
