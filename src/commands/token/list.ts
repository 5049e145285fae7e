import { FleetCommand } from "../../cli/base-command.js";
import { userFlag } from "../../cli/flags/flags.js";
import { type Column, renderAge, renderTable, USER } from "../../cli/render/table.js";
import type { TokenView } from "../../identity/tokens.js";

const COLUMNS: Column[] = [{ heading: "TOKEN", cut: "middle" }, USER, { heading: "AGE", yields: 1 }, "EXPIRES"];

export default class TokenList extends FleetCommand {
  static override summary = "Show the tokens that were issued and not revoked, without their secrets.";
  static override examples = ["<%= config.bin %> token list", "<%= config.bin %> token list --user alice --json"];
  static override flags = { user: userFlag };

  async run(): Promise<{ tokens: TokenView[] }> {
    const { flags } = await this.parse(TokenList);
    return await this.withFleet(async (fleet) => {
      const tokens = await fleet.tokens.list({ user: flags.user });
      const rows = tokens.map(({ id, user, createdAt, expiresAt, expired }) => {
        const age = renderAge(Math.max(0, Date.now() - Date.parse(createdAt)));
        return [id, user, age, expired ? "expired" : (expiresAt ?? "never")];
      });
      this.log(rows.length === 0 ? "No tokens." : renderTable(COLUMNS, rows));
      return { tokens };
    });
  }
}
