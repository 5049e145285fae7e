import { Args, Flags } from "@oclif/core";
import { isFleetError } from "../../../base/errors.js";
import { FleetCommand } from "../../base-command.js";
import { given, usage, userFilter, yesFlag } from "../../flags/flags.js";
import { askToRevoke, confirm, isAsked } from "../../prompt.js";

export default class TokenRevoke extends FleetCommand {
  static override summary = "Revoke tokens by their ids, or all tokens of a user.";
  static override description =
    "Asks for confirmation on a terminal. Connections that use a revoked token end within seconds. Exits with 4 when " +
    "a token is not found, but still revokes the others. The id of a JSON Web Token is jwt: and its claim jti. It stands for the tokens with that " +
    "claim of all issuers.";
  static override examples = [
    "<%= config.bin %> token revoke 0123456789abcdef",
    "<%= config.bin %> token revoke --user alice",
  ];
  static override strict = false;
  /** Without `ignoreStdin`, oclif reads a missing argument from standard input. */
  static override args = { token: Args.string({ description: "ids of tokens", ignoreStdin: true }) };
  static override flags = {
    user: userFilter("revoke all tokens of this user"),
    yes: yesFlag,
    "ignore-not-found": Flags.boolean({ description: "exit with 0 when a token is not found" }),
  };

  async run(): Promise<{ revoked: string[] }> {
    const { argv, flags } = await this.parse(TokenRevoke);
    const ids = argv as string[];
    const { user } = flags;
    if ((ids.length === 0) === (user === undefined)) {
      throw usage(ids.length === 0 ? "ID or --user is missing." : "Ids of tokens and --user cannot be used together.", [
        "copilotfleet token list # shows the ids",
        "copilotfleet token revoke ID",
        "copilotfleet token revoke --user USER",
      ]);
    }
    return await this.withFleet(async (fleet) => {
      if (isAsked({ json: this.jsonEnabled(), yes: flags.yes })) {
        const tokens = await fleet.tokens.list(given({ user }));
        const lost = tokens.filter(({ id }) => user !== undefined || ids.includes(id));
        if (lost.length > 0) await confirm(askToRevoke(lost));
      }
      using _ = this.progress("Revoking tokens");
      const ignoreNotFound = flags["ignore-not-found"] === true;
      try {
        const result = await fleet.tokens.revoke(user === undefined ? { ids } : { user }, { ignoreNotFound });
        this.log(result.revoked.length === 0 ? "Nothing to revoke." : result.revoked.join("\n"));
        return result;
      } catch (error) {
        const { revoked = [] } = (isFleetError(error) ? error.outcome : {}) as { revoked?: string[] };
        if (revoked.length > 0) this.log(revoked.join("\n"));
        throw error;
      }
    });
  }
}
