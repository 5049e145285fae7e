import { parseLifetime } from "../../../base/values/measures.js";
import { parseLabel } from "../../../base/values/names.js";
import type { Fleet } from "../../../fleet/fleet.js";
import type { IssuedToken } from "../../../identity/tokens.js";
import { FleetCommand } from "../../base-command.js";
import { actingUserFlag, given, onlySessionFlag, scopeFlag, textFlag } from "../../flags/flags.js";

export default class TokenIssue extends FleetCommand {
  static override summary = "Issue a token that lets a user's clients connect to the front door.";
  static override description =
    "Prints the token once and does not store it. Everybody who has it acts as this user. Scope read allows what changes " +
    "nothing and begins no turn, use also allows everything else in the user's sessions, and admin also allows actions on " +
    "other users, but not on their conversations.";
  static override examples = [
    '<%= config.bin %> token issue --user alice --ttl 30d --label "build server"',
    "<%= config.bin %> token issue --user alice --scope read --session SESSION",
    "<%= config.bin %> token issue --user alice --json",
  ];
  static override flags = {
    user: actingUserFlag,
    scope: scopeFlag,
    session: onlySessionFlag("token is valid for"),
    ttl: textFlag(
      "ttl",
      "how long the token is valid, such as 30d, or never (default: identity.tokenTtl)",
      "DURATION",
      parseLifetime,
    ),
    label: textFlag("label", "what the token is for; token list shows it", "TEXT", parseLabel),
  };

  async run(): Promise<IssuedToken> {
    const { flags } = await this.parse(TokenIssue);
    const { ttl, scope: scopes, session: sessionId, label } = flags;
    const options = given({ ttl, scopes, sessionId, label });
    const issue = async (fleet: Fleet) => await fleet.tokens.issue(flags.user, options);
    return await this.act("Issuing the token", issue, ({ token }) => token);
  }
}
