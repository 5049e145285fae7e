import type { TokenView } from "../../../identity/tokens.js";
import { listFlags, userFilter } from "../../flags/flags.js";
import { ListCommand } from "../../list-command.js";
import { TOKENS } from "../../render/columns.js";

export default class TokenList extends ListCommand {
  static override summary = "Show the tokens that were issued and not revoked, without their secrets.";
  static override examples = ["<%= config.bin %> token list", "<%= config.bin %> token list --user alice --json"];
  static override flags = { user: userFilter("show only tokens of this user"), ...listFlags(TOKENS) };

  async run(): Promise<{ tokens: TokenView[] }> {
    const { flags } = await this.parse(TokenList);
    return await this.printList(TOKENS, flags, async (fleet) => ({
      rows: await fleet.tokens.list({ user: flags.user }),
      resultOf: (tokens) => ({ tokens }),
      none: "No tokens.",
    }));
  }
}
