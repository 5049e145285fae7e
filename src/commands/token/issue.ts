import { FleetCommand } from "../../cli/base-command.js";
import { given, lifetimeFlag } from "../../cli/flags/flags.js";
import { actingUserFlag } from "../../cli/flags/user.js";
import type { IssuedToken } from "../../identity/tokens.js";

export default class TokenIssue extends FleetCommand {
  static override summary = "Issue a token that lets a user's clients connect to the front door.";
  static override description =
    "Prints the token once and does not store it. Everybody who has it acts as this user. Without --ttl it is valid until " +
    "it is revoked.";
  static override examples = [
    "<%= config.bin %> token issue --user alice --ttl 30d",
    "<%= config.bin %> token issue --user alice --json",
  ];
  static override flags = {
    user: actingUserFlag,
    ttl: lifetimeFlag("how long the token is valid, such as 30d (default: until it is revoked)"),
  };

  async run(): Promise<IssuedToken> {
    const { flags } = await this.parse(TokenIssue);
    return await this.withFleet(async (fleet) => {
      using _ = this.progress("Issuing the token");
      const issued = await fleet.tokens.issue(flags.user, given({ ttl: flags.ttl }));
      this.log(issued.token);
      return issued;
    });
  }
}
