import type { LimitView } from "../../../accounts/limits.js";
import { FleetCommand } from "../../base-command.js";
import { namedUserFlag } from "../../flags/flags.js";
import { renderLimits } from "../../render/results.js";

export default class LimitClear extends FleetCommand {
  static override summary = "Remove the limits that limit set has set for one user.";
  static override description = "The limits of the configuration then apply to the user again.";
  static override examples = ["<%= config.bin %> limit clear --user alice"];
  static override flags = { user: namedUserFlag };

  async run(): Promise<LimitView> {
    const { flags } = await this.parse(LimitClear);
    return await this.act("Clearing the limits", async (fleet) => await fleet.limits.clear(flags.user), renderLimits);
  }
}
