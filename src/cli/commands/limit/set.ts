import type { LimitView } from "../../../accounts/limits.js";
import { FleetCommand } from "../../base-command.js";
import { namedUserFlag, usage } from "../../flags/flags.js";
import { limitFlags, limitsIn } from "../../flags/limits.js";
import { renderLimits } from "../../render/results.js";

export default class LimitSet extends FleetCommand {
  static override summary = "Set limits of one user. They replace those of the configuration.";
  static override description =
    "Limits that are not given stay as they are. N is a whole number, unlimited, or default for the limit that the " +
    "configuration gives the user. Turns that run go on.";
  static override examples = [
    "<%= config.bin %> limit set --user alice --tokens-per-day 100000",
    "<%= config.bin %> limit set --user alice --turns-per-minute 10 --concurrent-turns unlimited",
  ];
  static override flags = { user: namedUserFlag, ...limitFlags };

  async run(): Promise<LimitView> {
    const { flags } = await this.parse(LimitSet);
    const limits = limitsIn(flags);
    if (Object.keys(limits).length === 0) {
      throw usage("No limit is given.", [
        "copilotfleet limit set --user USER --turns-per-minute 10",
        "copilotfleet limit set --help",
      ]);
    }
    return await this.withFleet(async (fleet) => {
      using _ = this.progress("Setting the limits");
      const view = await fleet.limits.set(flags.user, limits);
      this.log(renderLimits(view));
      return view;
    });
  }
}
