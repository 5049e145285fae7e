import type { UsageReport } from "../../accounts/ledger.js";
import { USAGE_BY } from "../../base/usage.js";
import { choiceFlag, listFlags, momentFlag, userFilter } from "../flags/flags.js";
import { ListCommand } from "../list-command.js";
import { renderTotal, USAGE } from "../render/results.js";

export default class Usage extends ListCommand {
  static override summary = "Show what users have used: turns, model requests and tokens.";
  static override description =
    "Each model request counts once, on whichever host it ran and whichever process has ended since. The model gateway estimates numbers that the model service does not report. A number that was neither reported nor estimated is shown as a dash, and is null in JSON. COST comes from provider.prices.";
  static override examples = [
    "<%= config.bin %> usage",
    "<%= config.bin %> usage --user alice --by day --since 30d",
    "<%= config.bin %> usage --by token --since 7d --output csv",
  ];
  static override flags = {
    user: userFilter("show only what this user has used"),
    by: choiceFlag("grouping", "what a row stands for (default: user)", USAGE_BY),
    since: momentFlag("since", "count only from then on: 24h, or a time in ISO 8601 (default: 24h)"),
    ...listFlags(USAGE),
  };

  async run(): Promise<UsageReport> {
    const { flags } = await this.parse(Usage);
    const { user, by, since } = flags;
    return await this.printList(USAGE, flags, async (fleet) => {
      const report = await fleet.usage.report({ user, by, since });
      return {
        rows: report.usage,
        resultOf: (rows) => ({ ...report, usage: rows }),
        none: `No usage since ${report.from}.`,
        below: (rows) => (rows.length === 0 ? [] : renderTotal(report.total)),
      };
    });
  }
}
