import type { LimitView } from "../../../accounts/limits.js";
import { FleetCommand } from "../../base-command.js";
import { namedUserFlag } from "../../flags/flags.js";
import { renderLimits } from "../../render/results.js";

export default class LimitShow extends FleetCommand {
  static override summary = "Show the limits of one user, what is used of them, and where each is set.";
  static override examples = [
    "<%= config.bin %> limit show --user alice",
    "<%= config.bin %> limit show --user alice --json",
  ];
  static override flags = { user: namedUserFlag };

  async run(): Promise<LimitView> {
    const { flags } = await this.parse(LimitShow);
    return await this.act("Looking it up", async (fleet) => await fleet.limits.get(flags.user), renderLimits);
  }
}
